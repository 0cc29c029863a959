"""Attention by the Pallas kernel "splash" on a TPU: blockwise, with lengths and segment ids.

Shape suffixes: B batch, L queries and keys of a row, H heads, K head width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

LANES = 128
"""The kernel takes rows of a multiple of so many tokens."""

RESIDUALS = "splash_residuals"
"""Name under which a recomputation policy may keep the kernel's output and its log-sum-exp."""

# Larger blocks keep the matrix unit busier and read keys and values less often; 512 x 512 float32
# scores are 1 MiB, which leaves room in the 16 MiB of a core's vector memory. Rows that it does not
# divide take the next smaller size.
_BLOCKS = (512, 256, 128)
_BATCH_AXES, _HEAD_AXIS = ("data", "fsdp"), "tensor"
_PADDING = -1  # the segment of what lies past a row's length


def splash(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    lengths_B: jax.Array | None,
    segment_ids_BL: jax.Array | None,
    *,
    causal_from: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`attention` by splash attention, forward and backward.

    With a mesh set, each device runs the kernel on its own rows and heads: the compiler can't
    partition it. Padding is a segment of its own, so that no row is without a valid key.

    Args:
      q_BLHK, k_BLHK, v_BLHK, lengths_B, segment_ids_BL, causal_from: as for `attention`; with
        lengths, segment ids are not negative.
      interpret: run the kernel step by step on any platform, slowly: for tests.

    Raises:
      ValueError: not on a TPU, or L is no multiple of 128.
    """
    B, L, H, K = q_BLHK.shape
    if jax.default_backend() != "tpu" and not interpret:
        raise ValueError(
            f"attention impl = 'splash' needs a TPU, and this is {jax.default_backend()!r}; use "
            "impl = 'auto'"
        )
    if L % LANES:
        raise ValueError(
            f"attention impl = 'splash' takes rows of a multiple of {LANES} tokens, got {L}: "
            "choose such a token budget, or impl = 'xla'"
        )
    ids_BL = jnp.zeros((B, L), jnp.int32) if segment_ids_BL is None else segment_ids_BL
    if lengths_B is not None:
        ids_BL = jnp.where(jnp.arange(L) < lengths_B[:, None], ids_BL, _PADDING)

    run = functools.partial(_run, causal_from=causal_from, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        batch = tuple(axis for axis in _BATCH_AXES if axis in mesh.axis_names)
        split = H % mesh.shape.get(_HEAD_AXIS, 1) == 0
        head = _HEAD_AXIS if split and _HEAD_AXIS in mesh.axis_names else None
        rows = PartitionSpec(batch, None, head, None)
        run = jax.shard_map(
            run,
            in_specs=(rows, rows, rows, PartitionSpec(batch)),
            out_specs=rows,
            check_vma=False,  # a Pallas call does not say how its output varies
        )
    return run(q_BLHK * K**-0.5, k_BLHK, v_BLHK, ids_BL)


def _run(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    ids_BL: jax.Array,
    *,
    causal_from: int | None,
    interpret: bool,
) -> jax.Array:
    """The kernel on one device; the queries are scaled."""
    # Imported here: only a TPU needs it.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    L, H = q_BLHK.shape[1:3]
    block = next(size for size in _BLOCKS if L % size == 0)
    if causal_from is None:
        mask = masks.FullMask((L, L))
    elif causal_from == 0:
        mask = masks.CausalMask((L, L))
    else:
        index = np.arange(L)
        mask = masks.NumpyMask((index < causal_from) | (index <= index[:, None]))
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * H),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=RESIDUALS,
        interpret=interpret,
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
    )

    def row(q_LHK: jax.Array, k_LHK: jax.Array, v_LHK: jax.Array, ids_L: jax.Array) -> jax.Array:
        q, k, v = (x.swapaxes(0, 1) for x in (q_LHK, k_LHK, v_LHK))
        return kernel(q, k, v, segment_ids=kernels.SegmentIds(ids_L, ids_L)).swapaxes(0, 1)

    return jax.vmap(row)(q_BLHK, k_BLHK, v_BLHK, ids_BL)
