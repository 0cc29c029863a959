"""The nearest centres of each row, by cosine.

Shapes: N rows, D features, K centres, C rows of one chunk, n nearest.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Cosines held at once: 2^24 float32 are 64 MiB. Below 256 rows a chunk's matmul no longer pays for
# reading the centres.
CHUNK_ELEMENTS = 2**24
CHUNK_ROWS_AT_LEAST = 256
_SAFE_NORM = (1e-15, 1e18)  # of float32 rows whose squares neither vanish nor overflow


def nearest_centres(
    features_ND: np.ndarray,
    centres_KD: np.ndarray,
    n: int,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """The n centres of the largest cosine with each row, exactly.

    Args:
      features_ND: finite float rows of any length.
      centres_KD: finite float rows of any length.
      n: how many, 1 <= n <= K. The published labels take 10.
      chunk: rows per device whose [C, K] cosines are held at once; by default chosen from K.
      mesh: its devices share the rows, each with all centres; the first device alone when None.

    Returns:
      int32 [N, n], nearest first; of equally near centres the one of the lower index comes first.

    Raises:
      ValueError: n out of range, or arrays that do not fit each other.
    """
    unit_KD = unit_rows(centres_KD)
    x_ND = np.asarray(features_ND) if not isinstance(features_ND, np.ndarray) else features_ND
    if x_ND.ndim != 2:
        raise ValueError(f"features have shape {x_ND.shape}; give [rows, features]")
    if not 1 <= n <= len(unit_KD):
        raise ValueError(f"n={n}: choose 1 <= n <= the number of centres, which is {len(unit_KD)}")
    if x_ND.shape[1] != unit_KD.shape[1]:
        raise ValueError(
            f"features have {x_ND.shape[1]} columns and centres {unit_KD.shape[1]}: "
            "were the centres made from other features?"
        )
    mesh = mesh or first_device()
    split, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    step = mesh.size * min(chunk or chunk_rows(len(unit_KD)), max(-(-len(x_ND) // mesh.size), 1))
    parts = [np.zeros((0, n), np.int32)]
    with jax.set_mesh(mesh):  # also where the caller has set another one
        placed_KD = jax.device_put(unit_KD, NamedSharding(mesh, whole))
        for start in range(0, len(x_ND), step):
            part = slice(start, start + step)
            # A memory-mapped file is never read as a whole. One shape, one compilation.
            rows = unit_rows(x_ND[part], first=part)
            padded = np.pad(rows, ((0, step - len(rows)), (0, 0)))
            placed = jax.device_put(padded, NamedSharding(mesh, split))
            parts.append(np.asarray(_nearest(placed, placed_KD, n=n, mesh=mesh))[: len(rows)])
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnames=("n", "mesh"))
def _nearest(rows_ND: jax.Array, centres_KD: jax.Array, *, n: int, mesh: Mesh) -> jax.Array:
    def local(x_CD: jax.Array, centres_KD: jax.Array) -> jax.Array:
        return jax.lax.top_k(cosines(x_CD, centres_KD), n)[1].astype(jnp.int32)

    split, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    return jax.shard_map(local, mesh=mesh, in_specs=(split, whole), out_specs=split)(
        rows_ND, centres_KD
    )


def first_device() -> Mesh:
    """A mesh of the first device alone."""
    return jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])


def cosines(a_MD: jax.Array, b_KD: jax.Array) -> jax.Array:
    """Dot products of unit rows [M, K].

    In full float32: the default precision of an accelerator would round the inputs.
    """
    return jnp.matmul(a_MD, b_KD.T, precision=jax.lax.Precision.HIGHEST)


def unit_rows(x_ND: np.ndarray, first: np.ndarray | slice | None = None) -> np.ndarray:
    """Rows of unit length, float32; a row of zeros stays one and is equally far from every centre.

    Args:
      x_ND: float rows.
      first: which rows of a larger matrix these are, for the message.

    Raises:
      ValueError: x is not a matrix or holds NaN or infinity.
    """
    x_ND = np.asarray(x_ND, np.float32)
    if x_ND.ndim != 2:
        raise ValueError(f"features have shape {x_ND.shape}; give [rows, features]")
    finite_N = np.isfinite(x_ND).all(axis=1)
    if not finite_N.all():
        row = int(np.argmin(finite_N))
        if first is not None:
            row = row + (first.start or 0) if isinstance(first, slice) else int(first[row])
        raise ValueError(
            f"row {row} of the features is not finite "
            f"({int((~finite_N).sum())} such rows): leave those rows out"
        )
    with np.errstate(over="ignore"):  # seen to below
        norm_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    beyond_N = ((norm_N1 < _SAFE_NORM[0]) | (norm_N1 > _SAFE_NORM[1]))[:, 0]
    if beyond_N.any():  # squares of float32 under- or overflow: such rows are scaled first
        largest_N1 = np.abs(x_ND[beyond_N]).max(axis=1, keepdims=True)
        scaled = x_ND[beyond_N] / np.where(largest_N1 > 0, largest_N1, 1)
        x_ND = x_ND.copy()
        x_ND[beyond_N] = scaled
        norm_N1[beyond_N] = np.linalg.norm(scaled, axis=1, keepdims=True)
    return x_ND / np.where(norm_N1 > 0, norm_N1, 1)


def chunk_rows(k: int) -> int:
    """Rows per chunk for k centres."""
    return max(CHUNK_ROWS_AT_LEAST, CHUNK_ELEMENTS // k)
