"""Motion between consecutive samples and what it fails to predict, by one of three signals.

Shape suffixes: M sampled frames, T = M - 1 pairs of them, S frames of the sequence that is searched
(the samples and, between them, partners), H and W the picture in pixels, N blocks of a frame in
row-major order, B = 256 pixels of a block, 2 = (x, y) in pixels of the motion plane.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from .block_search import scale_planes, search_vectors
from .blocks import block_origins, blocks_at, blocks_of, difference, texture

_FINE_SIDE = 24  # patches: the view of 224 pixels has 16, that of LLaVA 36


@dataclasses.dataclass(frozen=True, eq=False)
class Motion:
    """Block motion of a clip; pair t predicts sampled frame t + 1 from its partner.

    Attributes:
      rows, columns: blocks of a frame, N = rows * columns.
      vectors_TN2: float32, where a block of the later frame is found in the earlier one, minus its
        own place. What moves right has negative x.
      error_TNB: uint8, |luma - prediction| of each pixel.
      texture_TN: float32, standard deviation of the block's luma: vectors of flat blocks mean
        nothing.
      first_NB: uint8, luma of the first frame, which nothing predicts.
    """

    rows: int
    columns: int
    vectors_TN2: np.ndarray
    error_TNB: np.ndarray
    texture_TN: np.ndarray
    first_NB: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """What a signal may look at.

    Attributes:
      luma_MHW: uint8, the picture of the sampled frames, a whole number of patches.
      partner_luma_THW: uint8, of the frames that they are compared with; None: the sample before.
      coded_vectors_TN2: float32, what the file states, where the signal asked for it.
      rows, columns: patches of the picture.
    """

    luma_MHW: np.ndarray
    partner_luma_THW: np.ndarray | None
    coded_vectors_TN2: np.ndarray | None
    rows: int
    columns: int


def estimate_motion(samples: Samples, signal: str) -> Motion:
    """Motion, prediction error and texture of every patch after the first frame.

    Args:
      samples: the frames.
      signal: a key of SIGNALS.

    Returns:
      The motion; without pairs for a single frame.
    """
    rows, columns = samples.rows, samples.columns
    luma_SHW, later_T = _sequence(samples)
    planes_S, vectors_TN2 = SIGNALS[signal](samples, luma_SHW, later_T)
    origins_N2 = block_origins(rows, columns)
    limit = origins_N2[-1]
    pairs, blocks = vectors_TN2.shape[:2]
    error_TNB = np.empty((pairs, blocks, blocks_of(planes_S[0]).shape[1]), np.uint8)
    texture_TN = np.empty((pairs, blocks), np.float32)
    for t, later in enumerate(later_T):
        current_NB = blocks_of(planes_S[later])
        source_N2 = origins_N2 + np.rint(vectors_TN2[t]).astype(np.int64)
        predicted_NB = blocks_at(planes_S[later - 1], np.clip(source_N2, 0, limit))
        error_TNB[t] = difference(current_NB, predicted_NB)
        texture_TN[t] = texture(current_NB)
    return Motion(
        rows,
        columns,
        vectors_TN2.astype(np.float32),
        error_TNB,
        texture_TN,
        blocks_of(planes_S[0]),
    )


def _sequence(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Frames in the order of comparison, and the places of the later frame of each pair."""
    luma_MHW, partners_THW = samples.luma_MHW, samples.partner_luma_THW
    if partners_THW is None:
        return luma_MHW, np.arange(1, len(luma_MHW))
    # Sample, partner, sample, partner, sample: where a partner is the sample itself, the pair
    # between them is searched for nothing, which costs next to nothing.
    sequence = np.empty((2 * len(luma_MHW) - 1, *luma_MHW.shape[1:]), np.uint8)
    sequence[::2] = luma_MHW
    sequence[1::2] = partners_THW
    return sequence, np.arange(2, len(sequence), 2)


def _estimate(
    samples: Samples, luma_SHW: np.ndarray, later_T: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = samples.rows, samples.columns
    if max(rows, columns) <= _FINE_SIDE:
        planes, vectors_SN2 = search_vectors(luma_SHW, rows, columns)
        return planes, vectors_SN2[later_T - 1]
    # On fine grids a block of the search covers 2 x 2 patches: the search is half the cost of a
    # selection, and a patch of so small a part of the picture says little about its motion.
    coarse_rows, coarse_columns = -(-rows // 2), -(-columns // 2)
    _, vectors_SN2 = search_vectors(luma_SHW, coarse_rows, coarse_columns)
    coarse = vectors_SN2[later_T - 1].reshape(len(later_T), coarse_rows, coarse_columns, 2)
    y = (2 * np.arange(rows) + 1) * coarse_rows // (2 * rows)
    x = (2 * np.arange(columns) + 1) * coarse_columns // (2 * columns)
    factor = np.array([columns / coarse_columns, rows / coarse_rows])
    vectors_TN2 = coarse[:, y][:, :, x].reshape(len(later_T), -1, 2) * factor
    return scale_planes(luma_SHW, rows, columns), vectors_TN2


def _bitstream(
    samples: Samples, luma_SHW: np.ndarray, later_T: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    assert samples.coded_vectors_TN2 is not None, "the clip was decoded for another signal"
    planes = scale_planes(luma_SHW, samples.rows, samples.columns)
    return planes, samples.coded_vectors_TN2


def _difference(
    samples: Samples, luma_SHW: np.ndarray, later_T: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    planes = scale_planes(luma_SHW, samples.rows, samples.columns)
    return planes, np.zeros((len(later_T), samples.rows * samples.columns, 2), np.int64)


Signal = Callable[[Samples, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

SIGNALS: dict[str, Signal] = {
    "estimate": _estimate,
    "bitstream": _bitstream,
    "difference": _difference,
}
"""Name -> function of (samples, frames in order of comparison [S, H, W], places of the later frame
of each pair [T]) -> (motion planes [S, ...], vectors [T, N, 2])."""
