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
    sequences: PatchSequence | Sequence[PatchSequence],
    grid: tuple[int, int] | None = None,
    *,
    packed: bool = False,
) -> dict[str, torch.Tensor]:
    """The arguments of the exported model for packed patches: `model(**torch_input(sequence))`.

    The model takes selected patches tiled in raster order. Without `grid` they become one row of
    patches, an image [B, 3, P, K*P], whose places are given as positions; that fits every sequence.
    With `grid` they become the frames of a short video, as code written for the published model
    expects them. With `packed` nothing is tiled or padded: all patches follow each other.

    Args:
      sequences: one sequence, or several of one patch side P; K is the length of the longest.
      grid: rows and columns of patches in a frame; K must then be a multiple of rows*columns, every
        sequence K long, and every position lie in it.
      packed: the packed form, for sequences of very different lengths.

    Returns:
      `pixel_values` float32, normalised, with `patch_positions` int64 [B, K, 3] and, where lengths
      differ, `attention_mask` bool [B, K]; with `grid`, `pixel_values`
      [B, 3, K/(rows*columns), rows*P, columns*P] and `visible_indices` int64 [B, K]; with `packed`,
      `pixel_values` [total, P*P*3], `patch_positions` [total, 3] and `lengths` int64 [B].

    Raises:
      ValueError: no sequence, sequences of several patch sides, or a sequence that does not fit
        `grid`.
    """
    if isinstance(sequences, PatchSequence):
        sequences = [sequences]
    sides = {sequence.patch for sequence in sequences}
    if len(sides) != 1:
        raise ValueError(f"sequences must be one or more of one patch side, got sides {[*sides]}")
    if packed and grid is not None:
        raise ValueError("packed patches lie on no grid: drop one of packed and grid")
    lengths = np.array([len(sequence) for sequence in sequences])
    patches = [_normalise(sequence.patches) for sequence in sequences]
    positions = [sequence.positions.astype(np.int64) for sequence in sequences]
    if packed:
        pixels_SPP3 = np.concatenate(patches)
        return {
            "pixel_values": torch.from_numpy(pixels_SPP3.reshape(len(pixels_SPP3), -1)),
            "patch_positions": torch.from_numpy(np.concatenate(positions)),
            "lengths": torch.from_numpy(lengths),
        }
    B, K, (P,) = len(sequences), lengths.max(), sides
    pixels_BKPP3 = np.zeros((B, K, P, P, 3), np.float32)
    positions_BK3 = np.zeros((B, K, 3), np.int64)
    for row, length in enumerate(lengths):
        pixels_BKPP3[row, :length] = patches[row]
        positions_BK3[row, :length] = positions[row]
    mask_BK = np.arange(K) < lengths[:, None]
    if grid is None:
        image = pixels_BKPP3.transpose(0, 4, 2, 1, 3).reshape(B, 3, P, K * P)
        arguments = {
            "pixel_values": torch.from_numpy(image),
            "patch_positions": torch.from_numpy(positions_BK3),
        }
        return (
            arguments
            if mask_BK.all()
            else arguments | {"attention_mask": torch.from_numpy(mask_BK)}
        )
    if not mask_BK.all():
        raise ValueError(f"sequences on a grid must be of one length, got {lengths.tolist()}")
    return {
        "pixel_values": torch.from_numpy(_tile(pixels_BKPP3, grid)),
        "visible_indices": torch.from_numpy(_indices(positions_BK3, grid)),
    }


def _normalise(patches_KPP3: np.ndarray) -> np.ndarray:
    mean, std = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    return (patches_KPP3.astype(np.float32) / 255 - mean) / std


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
