"""The motion plane: the picture of a view, scaled so that one block of 16 x 16 pixels is one patch.

Shape suffixes: H and W the motion plane in pixels, N its blocks in row-major order, B = 256 pixels
of a block, 2 = (x, y) in pixels of the plane.
"""

from __future__ import annotations

import numpy as np

from .view import Placement

BLOCK = 16
"""Side of a motion block in pixels of the motion plane; mestimate takes powers of two from 8 on."""


def picture_blocks(placement: Placement, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the patches of a view that touch the picture: those with motion blocks."""
    rows, columns = placement.patches(patch, whole=False)
    return np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)


def block_origins(rows: int, columns: int) -> np.ndarray:
    """Top left corners of the blocks, int64 [N, 2] as (x, y), row-major."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    return np.stack([x, y], axis=1) * BLOCK


def blocks_of(plane_HW: np.ndarray) -> np.ndarray:
    """Cuts a plane into blocks, [N, B] in row-major order."""
    rows, columns = plane_HW.shape[0] // BLOCK, plane_HW.shape[1] // BLOCK
    cut = plane_HW.reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2)
    return cut.reshape(rows * columns, BLOCK * BLOCK)


def blocks_at(plane_HW: np.ndarray, corners_N2: np.ndarray) -> np.ndarray:
    """Blocks with the given top left corners, [N, B]; each must lie inside the plane."""
    windows = np.lib.stride_tricks.sliding_window_view(plane_HW, (BLOCK, BLOCK))
    return windows[corners_N2[:, 1], corners_N2[:, 0]].reshape(len(corners_N2), -1)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| of uint8 arrays without leaving uint8: max - min cannot wrap."""
    return np.maximum(a, b) - np.minimum(a, b)


def texture(pixels_NB: np.ndarray) -> np.ndarray:
    """Standard deviation of each block, float32 [N]."""
    values = pixels_NB.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    return np.sqrt(np.einsum("nb,nb->n", values, values) / values.shape[1])
