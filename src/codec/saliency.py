"""How much a patch holds that the frame before it does not: residual and motion, fused.

Shape suffixes: M sampled frames, T = M - 1 pairs of them, N motion blocks of a frame, each of them
a patch, B = 256 pixels of a block.
"""

from __future__ import annotations

import numpy as np

from .blocks import difference
from .camera import camera_motion
from .config import SelectionConfig
from .motion import Motion

_PERCENTILE = 0.95
_RESIDUAL_FLOOR = 2.0  # grey levels: below them a residual is noise
_MOTION_FLOOR = 0.5  # pixels: integer vectors jitter by that
_TEXTURED = 4.0  # grey levels of standard deviation; the search finds anything on flatter blocks


def saliency(motion: Motion, config: SelectionConfig) -> np.ndarray:
    """Score of every patch of the picture.

    Residual and motion are each divided by their 95th percentile (of the clip, of the frame, or the
    geometric mean of both, by `config.scale`), cut at 1, and averaged with the weights of the
    configuration. The parts are those of the published OneVision-Encoder tools; scale and camera
    model are this project's. Patches of the first frame, which nothing predicts, score by their
    deviation from their own mean on the scale of the residual.

    Args:
      motion: block motion of the clip.
      config: scale, camera model and weights.

    Returns:
      float32 [M, N] in 0..1.
    """
    mean_N1 = np.rint(motion.first_NB.mean(axis=1, keepdims=True)).astype(np.uint8)
    first_1NB = difference(motion.first_NB, mean_N1)[None]
    limit_T, first_limit_1 = _residual_limits(motion.error_TNB, first_1NB, config.scale)
    residual_TN = _residual_score(motion.error_TNB, limit_T)
    camera_TN2 = camera_motion(motion.vectors_TN2, motion.texture_TN, motion.columns, config.camera)
    moved_TN = motion_score(motion.vectors_TN2 - camera_TN2, motion.texture_TN, config.scale)
    total = config.w_res + config.w_mv
    later_TN = (
        np.float32(config.w_res / total) * residual_TN + np.float32(config.w_mv / total) * moved_TN
    )
    return np.concatenate([_residual_score(first_1NB, first_limit_1), later_TN])


def _residual_limits(
    error_TNB: np.ndarray, first_1NB: np.ndarray, scale: str
) -> tuple[np.ndarray, np.ndarray]:
    """The a of each pair and of the first frame: the 95th percentile of their pixels' errors.

    The clip's percentile is that of the pairs, or of the first frame where there is no pair.
    """
    pairs_T = _histograms(error_TNB)
    first_1 = _histograms(first_1NB)
    both = np.concatenate([pairs_T, first_1])
    of_clip = pairs_T if len(pairs_T) else first_1
    clip = _histogram_percentile(of_clip.sum(axis=0, keepdims=True))
    limits = _mix(_histogram_percentile(both), clip, scale)
    limits = np.maximum(limits, _RESIDUAL_FLOOR).astype(np.float32)
    return limits[: len(pairs_T)], limits[len(pairs_T) :]


def _histograms(error_TNB: np.ndarray) -> np.ndarray:
    """Pixels of each error, int64 [T, 256]: sorting millions of them would cost more than the
    search for motion."""
    counts = np.zeros((len(error_TNB), 256), np.int64)
    for t, error_NB in enumerate(error_TNB):
        counts[t] = np.bincount(error_NB.ravel(), minlength=256)
    return counts


def _residual_score(error_TNB: np.ndarray, limit_T: np.ndarray) -> np.ndarray:
    """Mean over each block of min(error, a) / a, float32 [T, N]."""
    pairs, blocks, pixels = error_TNB.shape
    score_TN = np.empty((pairs, blocks), np.float32)
    for t in range(pairs):
        cut = np.minimum(error_TNB[t], limit_T[t])
        score_TN[t] = cut.sum(axis=1) / (limit_T[t] * pixels)
    return score_TN


def motion_score(moved_TN2: np.ndarray, texture_TN: np.ndarray, scale: str) -> np.ndarray:
    """Length of each vector over the 95th percentile, at most 1, less where the block is flat.

    Args:
      moved_TN2: float32, vectors less the camera's, in pixels of the motion plane.
      texture_TN: float32, standard deviation of each block.
      scale: "clip", "sqrt" or "frame".

    Returns:
      float32 [T, N].
    """
    length_TN = np.hypot(moved_TN2[..., 0], moved_TN2[..., 1])
    if len(length_TN) == 0:
        return length_TN
    frame_T1 = np.quantile(length_TN, _PERCENTILE, axis=1, keepdims=True)
    limit_T1 = np.maximum(_mix(frame_T1, np.quantile(length_TN, _PERCENTILE), scale), _MOTION_FLOOR)
    textured_TN = np.minimum(texture_TN / _TEXTURED, 1.0)
    return (np.minimum(length_TN / limit_T1, 1.0) * textured_TN).astype(np.float32)


def _mix(frame: np.ndarray, clip: np.ndarray, scale: str) -> np.ndarray:
    if scale == "clip":
        return np.broadcast_to(clip, frame.shape)
    if scale == "sqrt":
        return np.sqrt(frame * clip)
    return frame


def _histogram_percentile(counts: np.ndarray) -> np.ndarray:
    """Smallest value that 95 % of the pixels do not exceed, per row of a [rows, 256] histogram."""
    below = np.cumsum(counts, axis=1)
    return (below >= _PERCENTILE * below[:, -1:]).argmax(axis=1).astype(np.float64)
