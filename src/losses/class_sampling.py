"""Which class centres a step's softmax runs over: the batch's classes and a draw of the others.

The sampling of Partial FC (An et al. 2022, arXiv 2203.15565), on fixed blocks of classes: what a
step draws depends on its key and its labels, not on the mesh, and every shape is static.

Shape suffixes: B samples of the global batch, M label columns, V blocks here, R classes of a block,
  L slots of a block.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

_LARGEST_SCORE = 2**30
_ROWS_OF_A_BLOCK = 512
_MOST_BLOCKS = 1024


def num_blocks(rows: int) -> int:
    """Blocks into which so many rows of centres are cut, on any mesh.

    A block of many classes keeps the drawn share near the asked one and seldom has more positives
    than slots; many blocks divide by many devices. Hence powers of two up to 1,024 with at least
    512 rows each, but 8 blocks (the devices of one host) where the rows are fewer.

    Args:
      rows: rows of centres, padding included.
    """
    wanted = min(_MOST_BLOCKS, max(8, rows // _ROWS_OF_A_BLOCK))
    return math.gcd(rows, 2 ** (wanted.bit_length() - 1))


def draw_classes(
    key: jax.Array,
    labels_BM: jax.Array,
    *,
    sample_rate: float,
    num_classes: int,
    block_rows: int,
    rows: int,
    first_row: int | jax.Array = 0,
) -> tuple[jax.Array, jax.Array]:
    """Draws ceil(sample_rate * block_rows) classes of every block, without replacement.

    A block's positives (classes that are a label in the batch) come first, then as many of its
    other classes, uniformly, as have room.

    Args:
      key: PRNG key of the step, the same on all devices.
      labels_BM: labels of the global batch; a value outside [0, num_classes) is none.
      sample_rate: in (0, 1].
      num_classes: rows from here on are padding and are drawn only where no class is left.
      block_rows: rows of one block, R.
      rows: number of rows here, whole blocks.
      first_row: the first of them, 0 or this device's share.

    Returns:
      int32 [V * L] rows, each at most once, numbered from the first row of all devices; and the
      number of positives here that found no slot.
    """
    blocks, slots = rows // block_rows, math.ceil(sample_rate * block_rows)
    local_BM = labels_BM - first_row
    here_BM = (labels_BM < num_classes) & (local_BM >= 0) & (local_BM < rows)
    # Negative indices would count from the end, so what is not here goes past the end instead.
    positive_VR = (
        jnp.zeros(rows, bool)
        .at[jnp.where(here_BM, local_BM, rows)]
        .set(True, mode="drop")
        .reshape(blocks, block_rows)
    )
    row_VR = jnp.arange(rows, dtype=jnp.int32).reshape(blocks, block_rows)

    # One key per block, by its number among all blocks: the same bits whichever device draws them.
    numbers_V = first_row // block_rows + jnp.arange(blocks)
    keys_V = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers_V)
    bits_VR = jax.vmap(lambda k: jax.random.bits(k, (block_rows,), jnp.uint32))(keys_V)
    score_VR = (bits_VR >> 2).astype(jnp.int32) + 1
    score_VR = jnp.where(positive_VR, _LARGEST_SCORE + 1, score_VR)
    score_VR = jnp.where(first_row + row_VR < num_classes, score_VR, 0)
    _, column_VL = jax.lax.top_k(score_VR, slots)

    drawn_VL = first_row + row_VR[:, :1] + column_VL
    overflow_V = jnp.maximum(positive_VR.sum(axis=1, dtype=jnp.int32) - slots, 0)
    return drawn_VL.reshape(-1), overflow_V.sum()
