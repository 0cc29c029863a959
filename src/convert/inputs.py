"""Patch sequences as the arguments of the exported PyTorch model. Imports torch, and no jax.

Shape suffixes: B sequences, K patches of each, P patch side in pixels, 3 RGB or (t, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..sequence import PatchSequence
from .hf.image_processing_onevision_encoder import CLIP_MEAN, CLIP_STD


def torch_input(
    sequences: PatchSequence | Sequence[PatchSequence], grid: tuple[int, int] | None = None
) -> dict[str, torch.Tensor]:
    """The arguments of the exported model for packed patches: `model(**torch_input(sequence))`.

    The model takes selected patches tiled in raster order. Without `grid` they become one row of
    patches, an image [B, 3, P, K*P], whose places are given as positions; that fits every sequence.
    With `grid` they become the frames of a short video, as code written for the published model
    expects them.

    Args:
      sequences: one sequence, or several of equal length K and patch side P.
      grid: rows and columns of patches in a frame; K must then be a multiple of rows*columns, and
        every position lie in it.

    Returns:
      `pixel_values` float32, normalised, with `patch_positions` int64 [B, K, 3]; with `grid`,
      `pixel_values` [B, 3, K/(rows*columns), rows*P, columns*P] and `visible_indices` int64 [B, K].

    Raises:
      ValueError: no sequence, unequal sequences, or a sequence that does not fit `grid`.
    """
    if isinstance(sequences, PatchSequence):
        sequences = [sequences]
    kinds = {(len(sequence), sequence.patch) for sequence in sequences}
    if len(kinds) != 1:
        raise ValueError(
            "sequences must be one or more of equal length and patch side, got (length, side) "
            f"{sorted(kinds)}"
        )
    patches_BKPP3 = np.stack([sequence.patches for sequence in sequences])
    positions_BK3 = np.stack([sequence.positions for sequence in sequences]).astype(np.int64)
    mean, std = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    pixels_BKPP3 = (patches_BKPP3.astype(np.float32) / 255 - mean) / std
    if grid is None:
        B, K, P = pixels_BKPP3.shape[:3]
        image = pixels_BKPP3.transpose(0, 4, 2, 1, 3).reshape(B, 3, P, K * P)
        return {
            "pixel_values": torch.from_numpy(image),
            "patch_positions": torch.from_numpy(positions_BK3),
        }
    return {
        "pixel_values": torch.from_numpy(_tile(pixels_BKPP3, grid)),
        "visible_indices": torch.from_numpy(_indices(positions_BK3, grid)),
    }


def _tile(pixels_BKPP3: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Patches in raster order -> frames [B, 3, K/(rows*columns), rows*P, columns*P]."""
    rows, columns = grid
    B, K, P = pixels_BKPP3.shape[:3]
    if K % (rows * columns):
        raise ValueError(
            f"a sequence of {K} patches does not fill frames of {rows} x {columns}: leave grid out"
        )
    frames = pixels_BKPP3.reshape(B, -1, rows, columns, P, P, 3)
    frames = frames.transpose(0, 6, 1, 2, 4, 3, 5)
    return frames.reshape(B, 3, -1, rows * P, columns * P)


def _indices(positions_BK3: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(t, h, w) -> t*rows*columns + h*columns + w, [B, K]."""
    rows, columns = grid
    t, h, w = np.moveaxis(positions_BK3, -1, 0)
    if h.max() >= rows or w.max() >= columns:
        raise ValueError(
            f"the patches reach row {h.max()} and column {w.max()}, outside of the {rows} x "
            f"{columns} grid: leave grid out"
        )
    return t * (rows * columns) + h * columns + w
