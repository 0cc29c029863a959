"""Captioning: the cross entropy of a caption's tokens, without the logits of all of them at once.

The loss of CoCa (arXiv 2205.01917) and OpenVision (arXiv 2505.04601, 2509.01644). Logits in float32
of a batch of 256 captions of 128 tokens over 32,000 words are 4 GB, and a plain program holds
several such arrays; here there are only those of one piece of the tokens.

Shape suffixes: B captions of the global batch, T tokens of one, D width, V vocabulary, N tokens of
  one device, c those of one piece, n pieces.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def captioning(
    hidden_BTD: jax.Array,
    kernel_DV: jax.Array,
    targets_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    chunk: int = 2048,
    weights_B: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross entropy of the tokens that the mask keeps, over the global batch.

    With a mesh set (`jax.set_mesh`) the captions are sharded over all of its axes. The mean is one
    over all tokens, not of the devices' means, so it does not depend on the mesh. Every device
    holds the whole vocabulary projection; its gradient is summed in float32.

    Args:
      hidden_BTD: what the decoder says of each target token; bfloat16 makes the matrix product one
        of bfloat16 inputs, logits are float32 anyway.
      kernel_DV: the vocabulary projection.
      targets_BT: integers in [0, V); one outside of it gives NaN, unless masked.
      mask_BT: bool, the tokens that count.
      chunk: tokens of a device whose logits [chunk, V] are held at once, and recomputed in the
        backward pass; it need not divide their number.
      weights_B: weight of each caption, 0 or more; 1 by default.

    Returns:
      The loss, a float32 scalar; 0 if no token counts. And
      metrics: `token_accuracy`, the share, weighted alike, of the tokens whose target has a larger
      logit than every other word; a tie is no hit.

    Raises:
      ValueError: shapes that don't fit, captions that don't divide among the devices, chunk < 1.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(mesh.axis_names)
    _check(hidden_BTD, kernel_DV, targets_BT, mask_BT, weights_B, chunk, math.prod(mesh.axis_sizes))
    if weights_B is None:
        weights_B = jnp.ones(len(hidden_BTD), jnp.float32)
    compute = functools.partial(_loss, axes=axes, chunk=chunk)
    if axes:
        sharded, replicated = PartitionSpec(axes), PartitionSpec()
        compute = jax.shard_map(
            compute,
            in_specs=(sharded, replicated, sharded, sharded),
            out_specs=replicated,
        )
    weight_BT = jnp.where(mask_BT, weights_B.astype(jnp.float32)[:, None], 0.0)
    loss, accuracy = compute(hidden_BTD, kernel_DV, targets_BT, weight_BT)
    return loss, jax.lax.stop_gradient({"token_accuracy": accuracy})


def _loss(
    hidden_BTD: jax.Array,
    kernel_DV: jax.Array,
    targets_BT: jax.Array,
    weight_BT: jax.Array,
    *,
    axes: tuple[str, ...],
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy, on one device: its own captions."""
    dtype = hidden_BTD.dtype
    words = kernel_DV.shape[1]
    size = min(chunk, max(targets_BT.size, 1))

    def in_pieces(x_N: jax.Array) -> jax.Array:
        padding = [(0, -len(x_N) % size)] + [(0, 0)] * (x_N.ndim - 1)
        return jnp.pad(x_N, padding).reshape(-1, size, *x_N.shape[1:])

    def piece(tokens: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Sums over the tokens of a piece."""
        hidden_cD, target_c, weight_c = tokens
        hidden_cD = jnp.where(weight_c[:, None] > 0, hidden_cD, 0)
        # Cast here and not outside, so that the gradient is summed over pieces in float32.
        kernel = kernel_DV.astype(dtype)
        logits_cV = jnp.matmul(hidden_cD, kernel, preferred_element_type=jnp.float32)
        logit_c1 = jnp.take_along_axis(
            logits_cV, target_c[:, None], axis=1, mode="fill", fill_value=jnp.nan
        )
        entropy_c = jax.nn.logsumexp(logits_cV, axis=1) - logit_c1[:, 0]
        not_below_c = jnp.sum(logits_cV >= logit_c1, axis=1)
        counts_c = weight_c > 0
        loss = jnp.sum(jnp.where(counts_c, weight_c * entropy_c, 0.0))
        return loss, jnp.sum(jnp.where(counts_c & (not_below_c == 1), weight_c, 0.0))

    # A negative index would count from the end.
    targets_BT = jnp.where((targets_BT >= 0) & (targets_BT < words), targets_BT, words)
    targets_BT = jnp.where(weight_BT > 0, targets_BT, 0)
    pieces = (
        in_pieces(hidden_BTD.reshape(-1, hidden_BTD.shape[2])),
        in_pieces(targets_BT.ravel()),
        in_pieces(weight_BT.ravel()),
    )
    if len(pieces[1]) > 1:
        piece = jax.checkpoint(piece, prevent_cse=False)
    loss_n, hits_n = jax.lax.map(piece, pieces)
    sums = loss_n.sum(), hits_n.sum(), weight_BT.sum()
    if axes:
        sums = jax.lax.psum(sums, axes)
    loss, hits, weight = sums
    weight = jnp.where(weight > 0, weight, 1.0)
    return loss / weight, hits / weight


def _check(
    hidden_BTD: jax.Array,
    kernel_DV: jax.Array,
    targets_BT: jax.Array,
    mask_BT: jax.Array,
    weights_B: jax.Array | None,
    chunk: int,
    devices: int,
) -> None:
    if hidden_BTD.ndim != 3 or kernel_DV.ndim != 2 or hidden_BTD.shape[2] != kernel_DV.shape[0]:
        raise ValueError(
            f"hidden states {hidden_BTD.shape} and kernel {kernel_DV.shape} don't fit: give "
            "[captions, tokens, width] and [width, vocabulary]"
        )
    for name, x in (("targets_BT", targets_BT), ("mask_BT", mask_BT)):
        if x.shape != hidden_BTD.shape[:2]:
            raise ValueError(
                f"{name} has shape {x.shape}: give {hidden_BTD.shape[:2]}, one per hidden state"
            )
    if weights_B is not None and weights_B.shape != (len(hidden_BTD),):
        raise ValueError(
            f"weights_B has shape {weights_B.shape}: give one weight for each of the "
            f"{len(hidden_BTD)} captions"
        )
    if len(hidden_BTD) % devices:
        raise ValueError(
            f"the batch has {len(hidden_BTD)} captions, which must be a multiple of {devices} "
            "(devices)"
        )
    if chunk < 1:
        raise ValueError(f"chunk = {chunk} must be 1 token or more")
