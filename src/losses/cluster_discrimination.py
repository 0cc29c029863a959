"""Cluster discrimination: a CosFace softmax over class centres that are sharded over all devices.

Multi-label cluster discrimination of OneVision-Encoder (arXiv 2602.08683; "MLCD", arXiv 2407.17331)
with the additive cosine margin of CosFace (arXiv 1801.09414) and its filter of near duplicates. The
gradient is that of the reported loss; the published code's is larger by the number of label
columns.

Shape suffixes: B samples of the global batch, b of one device, D width, C rows of centres, c of one
  chunk, N rows that take part on one device (all of its centres, or those drawn), n chunks, M label
  columns, K = N + B * M.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .class_sampling import draw_classes, num_blocks

_EPS = 1e-12
_MAX_EXPONENT = 85.0  # exp(85) times millions of classes stays below float32's largest number
_NO_CLASS = jnp.iinfo(jnp.int32).max


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
    sample_rate: float = 1.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross entropy of each drawn label against all classes, or against a sample of them.

    Every label column has a softmax of its own over all classes. Its target's logit is scale * (cos
    - margin); another class's is scale * cos, or 0 without gradient (still counted as exp(0)) where
    the cosine exceeds the filter: such a centre is likely a duplicate of the target. The other
    labels of the sample are such other classes too.

    With `sample_rate` below 1 the softmax runs over the classes of `class_sampling.draw_classes`,
    one draw for all columns, and no correction is made for those left out: the loss is lower, the
    gradient of each centre that takes part is exact for the smaller softmax. A sample's own labels
    always take part in its softmax, in whatever number; only as another sample's negative can a
    positive be missing, where its block has more of them than slots (`overflow`).

    With a mesh set (`jax.set_mesh`) the samples and the centres are sharded over all of its axes,
    and no device ever holds more logits than those of its own centres for one chunk.

    Args:
      embeddings_BD: any norm; bfloat16 makes the matrix product one of bfloat16 inputs, logits and
        the sums of gradients over chunks and devices are float32 anyway.
      centres_CD: any norm; rows from `num_classes` on are padding.
      labels_BM: integers; a value outside [0, num_classes) is no label. Labels may repeat within a
        row.
      num_classes: number of classes.
      weights_B: weight of each sample, 1 by default; a sample without a label weighs 0.
      margin: additive cosine margin of the target.
      scale: factor from cosine to logit.
      filter_threshold: cosine above which a class other than the target is taken out.
      chunks: the centres of a device, or those drawn of them, are taken in this many pieces, whose
        logits are recomputed in the backward pass.
      sample_rate: share of the classes to draw, in (0, 1]; 1 takes all.
      key: PRNG key of the draw, of the step alone and the same on every device; unused at rate 1.

    Returns:
      The loss, a float32 scalar: mean over a sample's labels, then weighted mean over samples; 0 if
        no sample counts. And
      metrics, weighted alike: `target_cosine`, `hardest_negative` (largest cosine with a class that
      is no label of the sample), `filtered` (share of the classes that the filter takes out), all
      of the classes that take part; and with a sample `overflow`, the number of the batch's classes
      that found no slot.

    Raises:
      ValueError: sizes don't divide, scale and margin would overflow float32, or the rate is out of
        range or without a key.
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
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate = {sample_rate} must lie in (0, 1]")
    sampled = sample_rate < 1
    if sampled and key is None:
        raise ValueError(f"sample_rate = {sample_rate} needs the key of the draw")
    blocks = num_blocks(len(centres_CD))
    if sampled and blocks % devices:
        raise ValueError(
            f"{len(centres_CD)} centres are sampled in {blocks} blocks, which do not divide among "
            f"{devices} devices: set sample_rate = 1"
        )
    if not sampled:
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
        sample_rate=sample_rate,
        block_rows=len(centres_CD) // blocks,
    )
    if axes:
        sharded, replicated = PartitionSpec(axes), PartitionSpec()
        compute = jax.shard_map(
            compute,
            # Labels and weights are small, and every device needs all of them.
            in_specs=(sharded, sharded, replicated, replicated, replicated),
            out_specs=replicated,
        )
    weights_B = weights_B.astype(jnp.float32)
    return compute(embeddings_BD, centres_CD, labels_BM, weights_B, key if sampled else None)


def _loss(
    embeddings_bD: jax.Array,
    centres_CD: jax.Array,
    labels_BM: jax.Array,
    weights_B: jax.Array,
    key: jax.Array | None,
    *,
    axes: tuple[str, ...],
    num_classes: int,
    margin: float,
    scale: float,
    threshold: float,
    chunks: int,
    sample_rate: float,
    block_rows: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss on one device: its own samples and centres, everybody's labels and weights."""
    valid_BM = (labels_BM >= 0) & (labels_BM < num_classes)
    labels_BM = jnp.where(valid_BM, labels_BM, -1)
    dtype = embeddings_bD.dtype
    embeddings_BD = _normalise(embeddings_bD)
    first_class = 0
    if axes:
        # Its transpose is a reduce-scatter: each device gets the gradient of its own samples.
        embeddings_BD = jax.lax.all_gather(embeddings_BD, axes, tiled=True)
        first_class = jax.lax.axis_index(axes) * len(centres_CD)

    def cosines(subscripts: str, centres: jax.Array) -> jax.Array:
        # Cast here, so that the gradients of the chunks and of the devices are summed in float32.
        rows_BD = embeddings_BD.astype(dtype)
        unit = _normalise(centres).astype(dtype)
        product = jnp.einsum(subscripts, rows_BD, unit, preferred_element_type=jnp.float32)
        return jnp.clip(product, -1.0, 1.0)

    def chunk(piece: tuple[jax.Array, jax.Array]) -> tuple[jax.Array | None, ...]:
        """Cosines of all samples with one piece of the centres, reduced over its classes."""
        centres_cD, classes_c = piece
        cosine_Bc = cosines("BD,cD->Bc", centres_cD)
        target_BM = None
        if key is None:  # the classes of a piece follow each other
            column_BM = labels_BM - classes_c[0]
            here_BM = (labels_BM >= 0) & (column_BM >= 0) & (column_BM < len(classes_c))
            column_BM = jnp.clip(column_BM, 0, len(classes_c) - 1)
            picked_BM = jnp.take_along_axis(cosine_Bc, column_BM, axis=1)
            target_BM = jnp.where(here_BM, picked_BM, 0.0)

        # The sample's own labels are left out here and added per column below. Subtracting a target
        # from a sum over all classes would cancel: exp(64 * 0.7) drowns everything else.
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

    if key is None:
        classes_N, centres_ND = first_class + jnp.arange(len(centres_CD)), centres_CD
        overflow = jnp.zeros((), jnp.int32)
    else:
        classes_N, overflow = draw_classes(
            key,
            # An unreadable record must not change what the others are compared with.
            jnp.where(weights_B[:, None] > 0, labels_BM, -1),
            sample_rate=sample_rate,
            num_classes=num_classes,
            block_rows=block_rows,
            rows=len(centres_CD),
            first_row=first_class,
        )
        classes_N = jnp.pad(classes_N, (0, -len(classes_N) % chunks), constant_values=_NO_CLASS)
        # Targets have rows of their own, so none can be missing, however many share a block. Rows
        # and targets are gathered at once: the gradient is then one array as large as the centres.
        centres_KD = _rows(
            centres_CD, jnp.concatenate([classes_N, labels_BM.ravel()]) - first_class
        )
        centres_ND = centres_KD[: len(classes_N)]
        target_BM = cosines(
            "BD,BMD->BM", centres_KD[len(classes_N) :].reshape(*labels_BM.shape, -1)
        )
    pieces = centres_ND.reshape(chunks, -1, centres_ND.shape[1]), classes_N.reshape(chunks, -1)
    if chunks > 1:
        chunk = jax.checkpoint(chunk, prevent_cse=False)
    target_nBM, sum_nB, hardest_nB, filtered_nB = jax.lax.map(chunk, pieces)
    if key is None:
        target_BM = target_nBM.sum(0)
    count = jnp.sum(classes_N < num_classes, dtype=jnp.int32)
    reduced = target_BM, sum_nB.sum(0), filtered_nB.sum(0), count, overflow
    hardest_B = hardest_nB.max(0)
    if axes:
        # Each target is owned by one device, the others add 0.
        reduced = jax.lax.psum(reduced, axes)
        hardest_B = jax.lax.pmax(hardest_B, axes)
    target_BM, sum_B, filtered_B, count, overflow = reduced

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
        "filtered": mean_B(filtered_B) / count,
    }
    if key is not None:
        metrics["overflow"] = overflow.astype(jnp.float32)
    return mean_BM(entropy_BM), jax.lax.stop_gradient(metrics)


def _rows(centres_CD: jax.Array, index_K: jax.Array) -> jax.Array:
    """Rows of this device's centres; zeros, which get no gradient, for those of other devices."""
    here_K = (index_K >= 0) & (index_K < len(centres_CD))
    index_K = jnp.where(here_K, index_K, len(centres_CD))  # negative ones would count from the end
    return centres_CD.at[index_K].get(mode="fill", fill_value=0)


def _normalise(x: jax.Array) -> jax.Array:
    """Rows (last axis) of length 1, in float32; a zero row stays zero, with a finite gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, _EPS**2))


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
