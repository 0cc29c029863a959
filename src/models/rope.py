"""3-D rotary position code of OneVision-Encoder (its class VideoRotaryEmbeddingSplit466),
reproduced exactly.

Half of the head width is split 4:6:6 over the axes (t, h, w). The published code repeats the
frequencies by *concatenation* but rotates *interleaved* channel pairs, so that the two channels of
a pair turn by different angles: the map is not a rotation and changes norms by a few per cent.
Published weights were trained with it; it must stay as it is.
https://github.com/EvolvingLMMs-Lab/OneVision-Encoder, arXiv 2602.08683.

Shape suffixes: B batch, L tokens, H heads, K head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

_SPLIT = (4, 6, 6)  # parts of 16 for t, h, w


def axis_frequencies(head_dim: int, theta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse frequencies of the three axes: theta^(-i/n) for i in 0..n-1, each axis over its own
    full range.

    Args:
      head_dim: width K of a head, a multiple of 32.
      theta: base of the frequencies.

    Returns:
      float64 arrays for t, h and w, of 4, 6 and 6 sixteenths of K/2 entries.

    Raises:
      ValueError: `head_dim` is not a multiple of 32.
    """
    if head_dim <= 0 or head_dim % 32:
        raise ValueError(
            f"head_dim = {head_dim} must be a multiple of 32: half of it splits 4:6:6 over t, h, w"
        )
    sizes = [part * head_dim // 32 for part in _SPLIT]
    t, h, w = (float(theta) ** (-np.arange(n) / n) for n in sizes)
    return t, h, w


def rope_table(
    positions_BL3: jax.Array, head_dim: int, theta: float = 10000.0
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every channel's angle.

    Args:
      positions_BL3: integer (t, h, w) of each token, patch indices.
      head_dim: width K of a head, a multiple of 32.
      theta: base of the frequencies.

    Returns:
      cos_BLK, sin_BLK, float32; channels [0, K/2) are t | h | w, channels [K/2, K) the same again.

    Raises:
      ValueError: `head_dim` is not a multiple of 32.
    """
    frequencies = axis_frequencies(head_dim, theta)
    # Each channel of the half belongs to one axis, so one multiplication gives all angles: no
    # concatenation on device.
    axis = np.repeat(np.arange(3), [len(f) for f in frequencies])
    inverse = np.concatenate(frequencies).astype(np.float32)
    angles = positions_BL3.astype(jnp.float32)[..., axis] * inverse
    angles_BLK = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles_BLK), jnp.sin(angles_BLK)


def apply_rope(x_BLHK: jax.Array, cos_BLK: jax.Array, sin_BLK: jax.Array) -> jax.Array:
    """x * cos + R(x) * sin, where R(x)[2i] = -x[2i+1] and R(x)[2i+1] = x[2i].

    Args:
      x_BLHK: queries or keys.
      cos_BLK, sin_BLK: float32, from `rope_table`.

    Returns:
      Array of the shape and dtype of `x_BLHK`; the products are taken in float32.
    """
    x = x_BLHK.astype(jnp.float32)
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    rotated = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    out = x * cos_BLK[:, :, None] + rotated * sin_BLK[:, :, None]
    return out.astype(x_BLHK.dtype)
