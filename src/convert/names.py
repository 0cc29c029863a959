"""The one table between our parameter tree and the tensors of the published onevision-encoder.

Both directions are strict: a missing, extra or misshapen tensor raises. Only numpy is imported, so
that weights are read where neither torch nor jax is wanted. The published layout is that of
`onevision_encoder` (arXiv 2602.08683): 16 tensors per block and 15 outside; a Linear holds
[out, in], the patch embedding is a convolution.

Shape suffixes: K = P*P*3 values of a flattened patch, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..models.config import ViTConfig

# How a leaf of ours becomes a published tensor.
SAME = "same"
LINEAR = "linear"  # [in, out] -> [out, in]
CONV = "conv"  # [K, D], K in the order (row, column, channel) -> [D, 3, P, P]


@dataclasses.dataclass(frozen=True)
class Row:
    """One leaf of ours and the published tensors it is cut into along its last axis.

    Attributes:
      ours: path in our tree; below `blocks` for a row of BLOCK.
      shape: of our leaf, without the leading depth axis of `blocks`; D width, F width of the MLP, K
        as above.
      published: tensor names; below `encoder.layers.I.` for a row of BLOCK.
      how: SAME, LINEAR or CONV.
    """

    ours: str
    shape: str
    published: tuple[str, ...]
    how: str = SAME


def _row(ours: str, shape: str, *published: str, how: str = SAME) -> Row:
    return Row(ours, shape, published, how)


# fmt: off
OUTSIDE = (
    _row("patch_embed/kernel",    "K D",   "embeddings.patch_embedding.weight", how=CONV),
    _row("layernorm_pre/scale",   "D",     "layernorm_pre.weight"),
    _row("layernorm_pre/bias",    "D",     "layernorm_pre.bias"),
    _row("layernorm_post/scale",  "D",     "layernorm_post.weight"),
    _row("layernorm_post/bias",   "D",     "layernorm_post.bias"),
    _row("head/probe",            "1 1 D", "head.probe"),
    _row("head/attn/qkv/kernel",  "D 3D",  "head.attention.in_proj_weight", how=LINEAR),
    _row("head/attn/qkv/bias",    "3D",    "head.attention.in_proj_bias"),
    _row("head/attn/out/kernel",  "D D",   "head.attention.out_proj.weight", how=LINEAR),
    _row("head/attn/out/bias",    "D",     "head.attention.out_proj.bias"),
    _row("head/norm/scale",       "D",     "head.norm.weight"),
    _row("head/mlp/fc1/kernel",   "D F",   "head.mlp.fc1.weight", how=LINEAR),
    _row("head/mlp/fc1/bias",     "F",     "head.mlp.fc1.bias"),
    _row("head/mlp/fc2/kernel",   "F D",   "head.mlp.fc2.weight", how=LINEAR),
    _row("head/mlp/fc2/bias",     "D",     "head.mlp.fc2.bias"),
)
BLOCK = (
    _row("norm1/scale",           "D",     "layer_norm1.weight"),
    _row("norm1/bias",            "D",     "layer_norm1.bias"),
    _row("attn/qkv/kernel",       "D 3D",  "self_attn.q_proj.weight", "self_attn.k_proj.weight",
                                           "self_attn.v_proj.weight", how=LINEAR),
    _row("attn/qkv/bias",         "3D",    "self_attn.q_proj.bias", "self_attn.k_proj.bias",
                                           "self_attn.v_proj.bias"),
    _row("attn/out/kernel",       "D D",   "self_attn.out_proj.weight", how=LINEAR),
    _row("attn/out/bias",         "D",     "self_attn.out_proj.bias"),
    _row("norm2/scale",           "D",     "layer_norm2.weight"),
    _row("norm2/bias",            "D",     "layer_norm2.bias"),
    _row("mlp/fc1/kernel",        "D F",   "mlp.fc1.weight", how=LINEAR),
    _row("mlp/fc1/bias",          "F",     "mlp.fc1.bias"),
    _row("mlp/fc2/kernel",        "F D",   "mlp.fc2.weight", how=LINEAR),
    _row("mlp/fc2/bias",          "D",     "mlp.fc2.bias"),
)
# fmt: on


def to_hf(params: Mapping[str, Any], config: ViTConfig) -> dict[str, np.ndarray]:
    """Our encoder parameters under the published names.

    Args:
      params: the encoder's tree, `blocks` stacked on a leading axis of config.depth.
      config: sizes of the encoder.

    Returns:
      16 * depth + 15 contiguous arrays with the dtypes of `params`.

    Raises:
      ValueError: a leaf is missing, unknown or has another shape than `config` says.
    """
    leaves = flatten(params)
    expected = _our_shapes(config)
    require_same("parameter", {path: leaf.shape for path, leaf in leaves.items()}, expected)
    tensors = {}
    for row in OUTSIDE:
        tensors |= publish(row, leaves[row.ours], config.patch, "")
    for i in range(config.depth):
        for row in BLOCK:
            leaf = leaves[f"blocks/{row.ours}"][i]
            tensors |= publish(row, leaf, config.patch, f"encoder.layers.{i}.")
    return tensors


def from_hf(tensors: Mapping[str, np.ndarray], config: ViTConfig) -> dict[str, Any]:
    """Published tensors as our encoder parameters, the inverse of `to_hf`.

    Args:
      tensors: arrays of any float type by published name.
      config: sizes of the encoder.

    Returns:
      The encoder's tree of float32 arrays.

    Raises:
      ValueError: a tensor is missing, unknown or has another shape than `config` says.
    """
    require_same("tensor", {name: t.shape for name, t in tensors.items()}, published_shapes(config))
    params: dict[str, Any] = {}
    for row in OUTSIDE:
        insert(params, row.ours, adopt(row, tensors, ""))
    for row in BLOCK:
        layers = [adopt(row, tensors, f"encoder.layers.{i}.") for i in range(config.depth)]
        insert(params, f"blocks/{row.ours}", np.stack(layers))
    return params


def published_shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every published tensor of an encoder of these sizes."""
    shapes = {}
    prefixes = [f"encoder.layers.{i}." for i in range(config.depth)]
    for rows, under in ((OUTSIDE, [""]), (BLOCK, prefixes)):
        for row in rows:
            *lead, last = resolve(row.shape, config)
            shape = (*lead, last // len(row.published))
            if row.how == LINEAR:
                shape = shape[::-1]
            elif row.how == CONV:
                shape = (shape[1], 3, config.patch, config.patch)
            shapes |= {prefix + name: shape for prefix in under for name in row.published}
    return shapes


def _our_shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    shapes = {row.ours: resolve(row.shape, config) for row in OUTSIDE}
    for row in BLOCK:
        shapes[f"blocks/{row.ours}"] = (config.depth, *resolve(row.shape, config))
    return shapes


def resolve(shape: str, config: ViTConfig) -> tuple[int, ...]:
    sizes = {
        "1": 1,
        "D": config.width,
        "3D": 3 * config.width,
        "F": config.mlp_dim,
        "K": 3 * config.patch**2,
    }
    return tuple(sizes[letter] for letter in shape.split())


def publish(row: Row, leaf: np.ndarray, patch: int, prefix: str) -> dict[str, np.ndarray]:
    pieces = np.split(leaf, len(row.published), axis=-1)
    if row.how == LINEAR:
        pieces = [piece.T for piece in pieces]
    elif row.how == CONV:
        pieces = [piece.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1) for piece in pieces]
    # safetensors writes memory as it lies: a transposed view would be stored in the wrong order.
    return {
        prefix + name: np.ascontiguousarray(piece)
        for name, piece in zip(row.published, pieces, strict=True)
    }


def adopt(row: Row, tensors: Mapping[str, np.ndarray], prefix: str) -> np.ndarray:
    pieces = [np.asarray(tensors[prefix + name], np.float32) for name in row.published]
    if row.how == LINEAR:
        pieces = [piece.T for piece in pieces]
    elif row.how == CONV:
        pieces = [piece.transpose(2, 3, 1, 0).reshape(-1, len(piece)) for piece in pieces]
    return np.ascontiguousarray(np.concatenate(pieces, axis=-1))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{key}/")
        else:
            leaves[prefix + key] = np.asarray(value)
    return leaves


def insert(tree: dict[str, Any], path: str, leaf: np.ndarray) -> None:
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = leaf


def require_same(
    what: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ValueError unless `found` has exactly the names and shapes of `expected`."""
    if missing := sorted(expected.keys() - found.keys()):
        raise ValueError(f"{len(missing)} {what}(s) missing, the first {missing[0]!r}")
    if extra := sorted(found.keys() - expected.keys()):
        raise ValueError(f"{len(extra)} unknown {what}(s), the first {extra[0]!r}")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise ValueError(
                f"{what} {name!r} has shape {list(found[name])}, this configuration needs "
                f"{list(shape)}"
            )
