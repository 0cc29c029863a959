"""Contrastive losses of images and texts: the symmetric softmax of CLIP and the sigmoid of SigLIP.

CLIP: arXiv 2103.00020, section 2.3; SigLIP: arXiv 2303.15343. An image may have several texts (a
caption from the web and a synthetic one, as in OpenVision, arXiv 2505.04601): the loss is the mean
of that of each.

One matrix product serves both directions. A device compares its own texts with all images, piece by
piece; sums over images are then complete, and sums over texts are completed by adding those of the
devices, one number per image. So only the images are gathered, and once for all texts.

Shape suffixes: B pairs of the global batch, b those of one device, E embedding, c images of one
  piece, n pieces.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# The logit of a pair that does not take part: exp gives 0 beside any other, and no infinity arises.
_LEFT_OUT = -1e30


def contrastive(
    image_BE: jax.Array,
    texts: Sequence[jax.Array],
    *,
    logit_scale: jax.Array,
    logit_bias: jax.Array | None = None,
    kind: str = "softmax",
    weights_B: jax.Array | None = None,
    chunks: int = 1,
    max_scale: float = 100.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over the texts of the loss between images and texts of which row i belongs to row i.

    With logits z = scale * image @ text.T (+ bias), per text:

    - softmax: half the weighted mean over rows of log-sum-exp(z[i, :]) - z[i, i], plus half that of
      the columns;
    - sigmoid: sum over all pairs of log(1 + exp(-y z)), y = 1 for i = j and -1 elsewhere, divided
      by the sum of weights (without weights: by B). A pair weighs the mean of its two rows.

    A row of weight 0 is left out altogether: it asks nothing, is nobody's negative, and gets no
    gradient. A row of any other weight is a whole negative for the others.

    With a mesh set (`jax.set_mesh`) the rows are sharded over all of its axes, and no device ever
    holds more logits than those of its own texts with one piece of the images. The value does not
    depend on the mesh.

    Args:
      image_BE: unit rows; bfloat16 makes the matrix product one of bfloat16 inputs, logits and sums
        of gradients are float32 anyway.
      texts: unit rows `[B, E]` each, one or more.
      logit_scale: scalar, the log of the scale.
      logit_bias: scalar added to every logit; sigmoid only, and needed there.
      kind: "softmax" or "sigmoid".
      weights_B: weight of each row, 0 or more; 1 by default.
      chunks: all images are taken in this many pieces, whose logits are recomputed in the backward
        pass (with 1 they are kept). It need not divide B.
      max_scale: a larger scale counts as this one and gets no gradient. (A scale that the trainer
        sets back to exactly this has one.)

    Returns:
      The loss, a float32 scalar; 0 if no row has a weight. And
      metrics: `accuracy` (weighted share of the images whose own text has a larger logit than every
      other; a tie is no hit; mean over the texts) and `logit_scale` (the scale that was used).

    Raises:
      ValueError: an unknown kind, a bias that is missing or has no effect, shapes that don't fit,
        rows that don't divide among the devices, chunks or max_scale out of range.
    """
    axes = tuple(jax.sharding.get_abstract_mesh().axis_names)
    _check(image_BE, texts, logit_bias, kind, weights_B, chunks, max_scale)
    if weights_B is None:
        weights_B = jnp.ones(len(image_BE), jnp.float32)
    logit_scale = jnp.asarray(logit_scale, jnp.float32)
    # Not jnp.minimum, whose gradient at the bound itself is halved.
    highest = math.log(max_scale)
    scale = jnp.exp(jnp.where(logit_scale <= highest, logit_scale, highest))
    bias = jnp.zeros((), jnp.float32) if logit_bias is None else jnp.asarray(logit_bias)

    compute = functools.partial(_loss, axes=axes, kind=kind, chunks=chunks)
    if axes:
        sharded, replicated = PartitionSpec(axes), PartitionSpec()
        compute = jax.shard_map(
            compute,
            # Weights are small, and every device needs all of them.
            in_specs=(sharded, sharded, replicated, replicated, replicated),
            out_specs=replicated,
        )
    loss, accuracy = compute(
        image_BE, tuple(texts), weights_B.astype(jnp.float32), scale, bias.astype(jnp.float32)
    )
    metrics = {"accuracy": accuracy, "logit_scale": scale}
    return loss, jax.lax.stop_gradient(metrics)


class _Piece(NamedTuple):
    """Some of the images: embeddings, numbers within the global batch, weights (0: left out)."""

    image_cE: jax.Array
    row_c: jax.Array
    weight_c: jax.Array


def _loss(
    image_bE: jax.Array,
    texts: tuple[jax.Array, ...],
    weights_B: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    axes: tuple[str, ...],
    kind: str,
    chunks: int,
) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy, on one device: its own images and texts, everybody's weights."""
    own, total, first_row = len(image_bE), len(weights_B), 0
    if axes:
        first_row = jax.lax.axis_index(axes) * own
    weight_b = jax.lax.dynamic_slice_in_dim(weights_B, first_row, own)
    dtype = jnp.result_type(image_bE, *texts)

    def readable(x_bE: jax.Array) -> jax.Array:
        """In float32, so that sums of gradients are, over pieces and over devices."""
        return jnp.where(weight_b[:, None] > 0, x_bE.astype(jnp.float32), 0.0)

    texts = tuple(readable(text_bE) for text_bE in texts)
    image_BE = readable(image_bE)
    if axes:
        # Its transpose is a reduce-scatter: each device gets the gradient of its own images.
        image_BE = jax.lax.all_gather(image_BE, axes, tiled=True)
    size = -(-total // chunks)

    def in_pieces(x: jax.Array, fill: float) -> jax.Array:
        padding = [(0, -total % size)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding, constant_values=fill).reshape(-1, size, *x.shape[1:])

    pieces = _Piece(
        in_pieces(image_BE, 0.0), in_pieces(jnp.arange(total), -1), in_pieces(weights_B, 0.0)
    )
    row_b = first_row + jnp.arange(own)
    of_piece, of_rows = _STEPS[kind]

    def compare(piece: _Piece) -> list[tuple[jax.Array, ...]]:
        """What each text says of a piece; all of them here, so that images have one gradient."""
        pair_bc = row_b[:, None] == piece.row_c
        image_cE = piece.image_cE.astype(dtype)
        found = []
        for text_bE in texts:
            cosine_bc = jnp.einsum(
                "bE,cE->bc", text_bE.astype(dtype), image_cE, preferred_element_type=jnp.float32
            )
            found.append(of_piece(scale * cosine_bc + bias, pair_bc, weight_b, piece.weight_c))
        return found

    if len(pieces.row_c) > 1:
        compare = jax.checkpoint(compare, prevent_cse=False)
    loss = hits = jnp.zeros(own)
    for found in jax.lax.map(compare, pieces):
        loss_b, hit_b = of_rows(found, weight_b, first_row, axes)
        loss, hits = loss + loss_b, hits + weight_b * hit_b
    sums = loss.sum(), hits.sum()
    if axes:
        sums = jax.lax.psum(sums, axes)
    count = len(texts) * weights_B.sum()
    return tuple(x / jnp.where(count > 0, count, 1.0) for x in sums)


def _softmax_of_piece(
    z_bc: jax.Array, pair_bc: jax.Array, weight_b: jax.Array, weight_c: jax.Array
) -> tuple[jax.Array, ...]:
    """Logits of the pairs, and sums of exp over the others: of texts, and of images.

    The pair is left out of the sums: log(e^z + rest) - z = log(1 + e^(log rest - z)) then neither
    overflows nor cancels where the pair dominates.
    """
    target_b = jnp.sum(jnp.where(pair_bc, z_bc, 0.0), axis=1)
    negative_bc = (weight_b[:, None] > 0) & (weight_c > 0) & ~pair_bc
    z_bc = jnp.where(negative_bc, z_bc, _LEFT_OUT)
    # Any shift gives the same sum, so the largest logit counts as a constant.
    fixed_bc = jax.lax.stop_gradient(z_bc)
    top_b, top_c = fixed_bc.max(axis=1), fixed_bc.max(axis=0)
    sum_b = jnp.sum(jnp.exp(z_bc - top_b[:, None]), axis=1)
    sum_c = jnp.sum(jnp.exp(z_bc - top_c), axis=0)
    return target_b, top_b, sum_b, top_c, sum_c


def _softmax_of_rows(
    found: tuple[jax.Array, ...],
    weight_b: jax.Array,
    first_row: jax.Array | int,
    axes: tuple[str, ...],
) -> tuple[jax.Array, jax.Array]:
    """Weighted loss of this device's rows, both ways, and whether each image finds its text."""
    target_nb, top_nb, sum_nb, top_nc, sum_nc = found
    target_b = target_nb.sum(0)
    top_b = top_nb.max(0)
    rest_b = top_b + jnp.log(jnp.sum(sum_nb * jnp.exp(top_nb - top_b), axis=0))

    top_B, sum_B = top_nc.ravel(), sum_nc.ravel()  # and padding
    if axes:
        highest_B = jax.lax.pmax(top_B, axes)
        sum_B = jax.lax.psum(sum_B * jnp.exp(top_B - highest_B), axes)
        top_B = highest_B
    own = len(weight_b)
    top_other_b = jax.lax.dynamic_slice_in_dim(top_B, first_row, own)
    rest_other_b = top_other_b + jnp.log(jax.lax.dynamic_slice_in_dim(sum_B, first_row, own))
    loss_b = jax.nn.softplus(rest_b - target_b) + jax.nn.softplus(rest_other_b - target_b)
    return weight_b * loss_b / 2, target_b > top_other_b


def _sigmoid_of_piece(
    z_bc: jax.Array, pair_bc: jax.Array, weight_b: jax.Array, weight_c: jax.Array
) -> tuple[jax.Array, ...]:
    """Weighted loss of the texts with a piece, logits of the pairs, largest other of an image."""
    both_bc = (weight_b[:, None] > 0) & (weight_c > 0)
    share_bc = jnp.where(both_bc, (weight_b[:, None] + weight_c) / 2, 0.0)
    loss_b = jnp.sum(share_bc * jax.nn.softplus(jnp.where(pair_bc, -z_bc, z_bc)), axis=1)
    fixed_bc = jax.lax.stop_gradient(z_bc)
    target_b = jnp.sum(jnp.where(pair_bc, fixed_bc, 0.0), axis=1)
    top_c = jnp.max(jnp.where(both_bc & ~pair_bc, fixed_bc, _LEFT_OUT), axis=0)
    return loss_b, target_b, top_c


def _sigmoid_of_rows(
    found: tuple[jax.Array, ...],
    weight_b: jax.Array,
    first_row: jax.Array | int,
    axes: tuple[str, ...],
) -> tuple[jax.Array, jax.Array]:
    """As `_softmax_of_rows`."""
    loss_nb, target_nb, top_nc = found
    top_B = top_nc.ravel()
    if axes:
        top_B = jax.lax.pmax(top_B, axes)
    top_b = jax.lax.dynamic_slice_in_dim(top_B, first_row, len(weight_b))
    return loss_nb.sum(0), target_nb.sum(0) > top_b


_STEPS = {
    "softmax": (_softmax_of_piece, _softmax_of_rows),
    "sigmoid": (_sigmoid_of_piece, _sigmoid_of_rows),
}


def _check(
    image_BE: jax.Array,
    texts: Sequence[jax.Array],
    logit_bias: jax.Array | None,
    kind: str,
    weights_B: jax.Array | None,
    chunks: int,
    max_scale: float,
) -> None:
    if kind not in _STEPS:
        raise ValueError(f"kind = {kind!r} must be one of {', '.join(_STEPS)}")
    if kind == "sigmoid" and logit_bias is None:
        raise ValueError("kind = 'sigmoid' needs logit_bias, a scalar (SigLIP starts it at -10)")
    if kind == "softmax" and logit_bias is not None:
        raise ValueError("logit_bias changes nothing under kind = 'softmax': leave it out")
    if not texts:
        raise ValueError("texts is empty: give the embeddings of at least one text per image")
    for i, text_BE in enumerate(texts):
        if text_BE.shape != image_BE.shape or image_BE.ndim != 2:
            raise ValueError(
                f"texts[{i}] has shape {text_BE.shape} and the images {image_BE.shape}: "
                "give [pairs, embedding], the same for both"
            )
    if weights_B is not None and weights_B.shape != (len(image_BE),):
        raise ValueError(
            f"weights_B has shape {weights_B.shape}: give one weight for each of the "
            f"{len(image_BE)} pairs"
        )
    devices = math.prod(jax.sharding.get_abstract_mesh().axis_sizes)
    if len(image_BE) % devices:
        raise ValueError(
            f"the batch has {len(image_BE)} pairs, which must be a multiple of {devices} (devices)"
        )
    if chunks < 1:
        raise ValueError(f"chunks = {chunks} must be 1 or more")
    if not max_scale > 0:
        raise ValueError(f"max_scale = {max_scale} must be positive (100 is usual)")
