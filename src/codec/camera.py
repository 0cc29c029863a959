"""The motion of the camera, from the block vectors of a frame.

Shape suffixes: T pairs of frames, N blocks of a frame. Vectors and places are complex numbers, x +
iy, in pixels of the motion plane: a similarity (shift, zoom, roll) is then one complex line, vector
= c * place + d.
"""

from __future__ import annotations

import numpy as np

from .blocks import BLOCK

_ROUNDS = 6
_WIDTH = 2.0  # pixels: a block that is off by this much counts half (Cauchy weights)
_RIDGE = 1e-3
_MAX_ZOOM = 0.5
_TEXTURED = 4.0  # grey levels of standard deviation


def camera_motion(
    vectors_TN2: np.ndarray, texture_TN: np.ndarray, columns: int, model: str
) -> np.ndarray:
    """Vectors that the camera alone would give.

    Args:
      vectors_TN2: float32, block vectors (x, y).
      texture_TN: float32, standard deviation of each block.
      columns: blocks in a row of the frame; N is a multiple of it.
      model: "similarity", "median" or "none".

    Returns:
      float32 [T, N, 2].
    """
    if model == "none":
        return np.zeros_like(vectors_TN2)
    median_T12 = np.median(vectors_TN2, axis=1, keepdims=True)
    camera_TN2 = np.broadcast_to(median_T12, vectors_TN2.shape).astype(np.float32)
    if model == "similarity":
        fit_TN2, sound_T = _fit_similarity(vectors_TN2, texture_TN, columns, median_T12)
        camera_TN2[sound_T] = fit_TN2[sound_T]
    return camera_TN2


def _fit_similarity(
    vectors_TN2: np.ndarray, texture_TN: np.ndarray, columns: int, median_T12: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Iteratively reweighted least squares from the median on, all frames at once.

    Returns:
      (float32 [T, N, 2], bool [T]: False where too few blocks carry texture or the zoom is absurd).
    """
    blocks = vectors_TN2.shape[1]
    y, x = np.divmod(np.arange(blocks), columns)
    place_N = ((x - x.mean()) + 1j * (y - y.mean())) * BLOCK
    vector_TN = _complex(vectors_TN2)
    textured_TN = np.minimum(texture_TN / _TEXTURED, 1.0).astype(np.float64) + 1e-6
    fit_TN = np.broadcast_to(_complex(median_T12), vector_TN.shape)
    zoom_T1 = np.zeros((len(vector_TN), 1))
    for _ in range(_ROUNDS):
        off_TN = vector_TN - fit_TN
        weight_TN = textured_TN / (1.0 + (off_TN.real**2 + off_TN.imag**2) / _WIDTH**2)
        weight_TN /= weight_TN.sum(axis=1, keepdims=True)
        place_T1 = (weight_TN * place_N).sum(axis=1, keepdims=True)
        vector_T1 = (weight_TN * vector_TN).sum(axis=1, keepdims=True)
        centred_TN = place_N - place_T1
        spread_T1 = (weight_TN * np.abs(centred_TN) ** 2).sum(axis=1, keepdims=True) + _RIDGE
        zoom_T1 = (weight_TN * centred_TN.conj() * vector_TN).sum(axis=1, keepdims=True) / spread_T1
        fit_TN = zoom_T1 * centred_TN + vector_T1
    enough_T = (texture_TN >= _TEXTURED).sum(axis=1) * 4 >= blocks
    sound_T = enough_T & (np.abs(np.abs(1.0 + zoom_T1[:, 0]) - 1.0) <= _MAX_ZOOM)
    return np.stack([fit_TN.real, fit_TN.imag], axis=2).astype(np.float32), sound_T


def _complex(vectors: np.ndarray) -> np.ndarray:
    return vectors[..., 0].astype(np.float64) + 1j * vectors[..., 1]
