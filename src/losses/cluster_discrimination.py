"""Cluster discrimination: a CosFace softmax over class centres that are sharded over all devices.

Multi-label cluster discrimination of OneVision-Encoder (arXiv 2602.08683; "MLCD", arXiv 2407.17331)
with the additive cosine margin of CosFace (arXiv 1801.09414) and its filter of near duplicates. The
gradient is that of the reported loss; the published code's is larger by the number of label
columns.

Shape suffixes: B samples of the global batch, b of one device, D width, C classes, c of one chunk,
  M label columns.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

_EPS = 1e-12
_MAX_EXPONENT = 85.0  # exp(85) times millions of classes stays below float32's largest number


def cluster_discrimination(
    embeddings_BD: jax.Array,
    centres_CD: jax.Array,
    labels_BM: jax.Array,
    *,
    num_classes: int,
    weights_B: jax.Array | None = None,
    margin: float = 0.3,
    scale: float = 64.0,
    filter_threshold: float = 0.75,
    chunks: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross entropy of each drawn label against all classes.

    Every label column has a softmax of its own over all classes. Its target's logit is scale * (cos
    - margin); another class's is scale * cos, or 0 without gradient (still counted as exp(0)) where
    the cosine exceeds the filter: such a centre is likely a duplicate of the target. The other
    labels of the sample are such other classes too.

    With a mesh set (`jax.set_mesh`) the samples and the centres are sharded over all of its axes,
    and no device ever holds more logits than those of its own centres for one chunk.

    Args:
      embeddings_BD: any norm; bfloat16 makes the matrix product one of bfloat16 inputs, logits are
        float32 anyway.
      centres_CD: any norm; rows from `num_classes` on are padding.
      labels_BM: integers; a value outside [0, num_classes) is no label. Labels may repeat within a
        row.
      num_classes: number of classes.
      weights_B: weight of each sample, 1 by default; a sample without a label weighs 0.
      margin: additive cosine margin of the target.
      scale: factor from cosine to logit.
      filter_threshold: cosine above which a class other than the target is taken out.
      chunks: the centres of a device are taken in this many pieces, whose logits are recomputed in
        the backward pass.

    Returns:
      The loss, a float32 scalar: mean over a sample's labels, then weighted mean over samples; 0 if
        no sample counts. And
      metrics, weighted alike: `target_cosine`, `hardest_negative` (largest cosine with a class that
      is no label of the sample) and `filtered` (share of the classes that the filter takes out).

    Raises:
      ValueError: sizes don't divide, or scale and margin would overflow float32.
    """
    exponent = scale * (1 + abs(margin))
    if not exponent <= _MAX_EXPONENT:
        raise ValueError(
            f"scale = {scale} with margin = {margin} would overflow float32: "
            f"scale * (1 + margin) = {exponent:g} must be at most {_MAX_EXPONENT:g}"
        )
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(mesh.axis_names)
    devices = math.prod(mesh.axis_sizes) if axes else 1
    _require_divisible("embeddings", len(embeddings_BD), devices, "devices")
    _require_divisible("centres", len(centres_CD), devices * chunks, "devices x chunks")
    if not 1 <= num_classes <= len(centres_CD):
        raise ValueError(
            f"num_classes = {num_classes} must lie in 1..{len(centres_CD)} (rows of centres)"
        )
    if weights_B is None:
        weights_B = jnp.ones(len(embeddings_BD), jnp.float32)

    compute = functools.partial(
        _loss,
        axes=axes,
        num_classes=num_classes,
        margin=margin,
        scale=scale,
        threshold=filter_threshold,
        chunks=chunks,
    )
    if axes:
        sharded, replicated = PartitionSpec(axes), PartitionSpec()
        compute = jax.shard_map(
            compute,
            # Labels and weights are small, and every device needs all of them.
            in_specs=(sharded, sharded, replicated, replicated),
            out_specs=replicated,
        )
    return compute(embeddings_BD, centres_CD, labels_BM, weights_B.astype(jnp.float32))


def _loss(
    embeddings_bD: jax.Array,
    centres_CD: jax.Array,
    labels_BM: jax.Array,
    weights_B: jax.Array,
    *,
    axes: tuple[str, ...],
    num_classes: int,
    margin: float,
    scale: float,
    threshold: float,
    chunks: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss on one device: its own samples and centres, everybody's labels and weights."""
    valid_BM = (labels_BM >= 0) & (labels_BM < num_classes)
    labels_BM = jnp.where(valid_BM, labels_BM, -1)
    dtype = embeddings_bD.dtype
    embeddings_BD = _normalise(embeddings_bD).astype(dtype)
    first_class = 0
    if axes:
        # Its transpose is a reduce-scatter: each device gets the gradient of its own samples.
        embeddings_BD = jax.lax.all_gather(embeddings_BD, axes, tiled=True)
        first_class = jax.lax.axis_index(axes) * len(centres_CD)

    def chunk(piece: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        """Cosines of all samples with one piece of the centres, reduced over its classes."""
        centres_cD, start = piece
        size = len(centres_cD)
        cosine_Bc = jnp.einsum(
            "BD,cD->Bc",
            embeddings_BD,
            _normalise(centres_cD).astype(dtype),
            preferred_element_type=jnp.float32,
        )
        cosine_Bc = jnp.clip(cosine_Bc, -1.0, 1.0)
        column_BM = labels_BM - start
        here_BM = (labels_BM >= 0) & (column_BM >= 0) & (column_BM < size)
        picked_BM = jnp.take_along_axis(cosine_Bc, jnp.clip(column_BM, 0, size - 1), axis=1)
        target_BM = jnp.where(here_BM, picked_BM, 0.0)

        classes_c = start + jnp.arange(size)
        # The sample's own labels are left out here and added per column below. Subtracting a target
        # from a sum over all
        # classes would cancel: exp(64 * 0.7) drowns everything else.
        other_Bc = jnp.broadcast_to(classes_c < num_classes, cosine_Bc.shape)
        for m in range(labels_BM.shape[1]):
            other_Bc &= labels_BM[:, m, None] != classes_c
        sum_B = jnp.sum(
            jnp.where(other_Bc, jnp.exp(_filtered(cosine_Bc, scale, threshold)), 0.0), axis=1
        )
        fixed_Bc = jax.lax.stop_gradient(cosine_Bc)
        hardest_B = jnp.max(jnp.where(other_Bc, fixed_Bc, -1.0), axis=1)
        filtered_B = jnp.sum(other_Bc & (fixed_Bc > threshold), axis=1, dtype=jnp.float32)
        return target_BM, sum_B, hardest_B, filtered_B

    pieces_nCD = centres_CD.reshape(chunks, -1, centres_CD.shape[1])
    starts_n = first_class + jnp.arange(chunks) * pieces_nCD.shape[1]
    if chunks > 1:
        chunk = jax.checkpoint(chunk, prevent_cse=False)
    target_nBM, sum_nB, hardest_nB, filtered_nB = jax.lax.map(chunk, (pieces_nCD, starts_n))
    reduced = target_nBM.sum(0), sum_nB.sum(0), filtered_nB.sum(0)
    hardest_B = hardest_nB.max(0)
    if axes:
        # Each target is owned by one device, the others add 0.
        reduced = jax.lax.psum(reduced, axes)
        hardest_B = jax.lax.pmax(hardest_B, axes)
    target_BM, sum_B, filtered_B = reduced

    rest_BM = sum_B[:, None] + _other_labels(labels_BM, target_BM, scale, threshold)
    # -log(e^z / (e^z + rest)) = log(1 + e^(log rest - z)), which neither overflows nor cancels.
    target_logit_BM = scale * (target_BM - margin)
    entropy_BM = jax.nn.softplus(jnp.log(jnp.maximum(rest_BM, 1e-37)) - target_logit_BM)

    count_B = valid_BM.sum(axis=1)
    weights_B = jnp.where(count_B > 0, weights_B, 0.0)
    total = weights_B.sum()

    def mean_B(x_B: jax.Array) -> jax.Array:
        return jnp.sum(weights_B * x_B) / jnp.where(total > 0, total, 1.0)

    def mean_BM(x_BM: jax.Array) -> jax.Array:
        return mean_B(jnp.where(valid_BM, x_BM, 0.0).sum(axis=1) / jnp.maximum(count_B, 1))

    metrics = {
        "target_cosine": mean_BM(target_BM),
        "hardest_negative": mean_B(hardest_B),
        "filtered": mean_B(filtered_B) / num_classes,
    }
    return mean_BM(entropy_BM), jax.lax.stop_gradient(metrics)


def _normalise(x_ND: jax.Array) -> jax.Array:
    """Rows of length 1, in float32; a zero row stays zero, with a finite gradient."""
    x_ND = x_ND.astype(jnp.float32)
    square_N1 = jnp.sum(x_ND * x_ND, axis=-1, keepdims=True)
    return x_ND * jax.lax.rsqrt(jnp.maximum(square_N1, _EPS**2))


def _filtered(cosine: jax.Array, scale: float, threshold: float) -> jax.Array:
    """Logits of classes other than the target."""
    return jnp.where(cosine > threshold, 0.0, scale * cosine)


def _other_labels(
    labels_BM: jax.Array, target_BM: jax.Array, scale: float, threshold: float
) -> jax.Array:
    """Per column, the sum of exp(logit) over the sample's other labels, each class once: [B, M]."""
    num = labels_BM.shape[1]
    same_BMM = labels_BM[:, :, None] == labels_BM[:, None, :]
    earlier_MM = jnp.tril(jnp.ones((num, num), bool), k=-1)
    first_BM = (labels_BM >= 0) & ~jnp.any(same_BMM & earlier_MM, axis=2)
    exp_BM = jnp.exp(_filtered(target_BM, scale, threshold))
    return jnp.sum(jnp.where(~same_BMM & first_BM[:, None, :], exp_BM[:, None, :], 0.0), axis=2)


def _require_divisible(what: str, rows: int, by: int, unit: str) -> None:
    if rows % by:
        raise ValueError(f"{what} have {rows} rows, which must be a multiple of {by} ({unit})")
