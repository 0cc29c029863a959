"""Patches of another size, each resized alone.

A mosaic is no picture: neighbouring cells come from other places and times. Resizing the mosaic as
a whole, as the published pipeline does (576 -> 504), mixes pixels of unrelated patches along every
seam. Here a pixel outside of a patch does not exist for it.

Shape suffixes: L patches, P side of a patch, Q side of a resized patch, 3 RGB.
"""

from __future__ import annotations

import functools

import numpy as np

_SHARPNESS = -0.5  # the a of Pillow's and most others' bicubic kernel
_CHUNK = 2048  # patches at once: what is held stays small beside the patches themselves


def resize_patches(patches_LPP3: np.ndarray, side: int) -> np.ndarray:
    """Bicubic, with antialiasing where patches get smaller, as Pillow resizes one image.

    Args:
      patches_LPP3: uint8.
      side: Q in pixels.

    Returns:
      uint8 [L, Q, Q, 3]; the same array where Q = P. Row i depends on row i alone.
    """
    length, old = patches_LPP3.shape[:2]
    if old == side:
        return patches_LPP3
    weights_QP = bicubic_weights(old, side)
    out = np.empty((length, side, side, 3), np.uint8)
    for start in range(0, length, _CHUNK):
        x = patches_LPP3[start : start + _CHUNK].astype(np.float32)
        x = weights_QP @ x.reshape(len(x), old, old * 3)  # along the rows
        x = weights_QP @ x.reshape(len(x) * side, old, 3)  # along the columns
        np.rint(x, out=x)
        np.clip(x, 0, 255, out=x)
        out[start : start + _CHUNK] = x.reshape(-1, side, side, 3)
    return out


@functools.lru_cache(maxsize=8)
def bicubic_weights(old: int, new: int) -> np.ndarray:
    """The weight of each old sample in each new one.

    Args:
      old: samples P.
      new: samples Q.

    Returns:
      float32 [Q, P]; every row sums to 1.
    """
    scale = max(old / new, 1.0)  # a smaller copy widens the kernel: that is the antialiasing
    centre_Q1 = (np.arange(new)[:, None] + 0.5) * old / new
    distance_QP = np.abs((np.arange(old) + 0.5 - centre_Q1) / scale)
    a, d = _SHARPNESS, distance_QP
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    weights = np.where(d < 1, near, np.where(d < 2, far, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    weights = weights.astype(np.float32)
    weights.setflags(write=False)
    return weights
