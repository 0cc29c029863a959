"""Image-text parameters: our tree <-> OpenCLIP's tensors, and from OpenVision's JAX arrays.

Every direction is strict: a missing, extra or misshapen tensor is an error with its name. The
names are those of `table`. Only numpy is imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..names import CONV, LINEAR, flatten, insert, require_same
from .table import Entry, Row, decoder_entries, entries

if TYPE_CHECKING:
    from .settings import Parts

PROJECTION = "visual.proj"
"""Of the image tower into the common embedding."""

POSITIONS = "visual.positional_embedding"
"""The fixed code, which OpenCLIP stores for one resolution; ours is computed from positions."""


def to_openclip(params: Mapping[str, Any], parts: Parts) -> dict[str, np.ndarray]:
    """Our parameters under OpenCLIP's names.

    Args:
      params: the tree of `models.clip`.
      parts: sizes of the model.

    Returns:
      Contiguous arrays with the dtypes of `params`, without decoder and position code.

    Raises:
      ValueError: a leaf is missing, unknown or has another shape than `parts` says.
    """
    leaves = _checked_leaves(params, parts)
    tensors = {}
    for entry in entries(parts):
        leaf = leaves[entry.ours] if entry.layer is None else leaves[entry.ours][entry.layer]
        tensors[entry.openclip] = _publish(entry.row, leaf, parts.vision.patch)
    return tensors


def decoder_tensors(params: Mapping[str, Any], parts: Parts) -> dict[str, np.ndarray]:
    """The decoder's parameters under the path names of our tree, "decoder/..."; empty without one.

    Raises:
      ValueError: as for `to_openclip`.
    """
    leaves = _checked_leaves(params, parts)
    return {path: leaf for path, leaf in leaves.items() if path.startswith("decoder/")}


def from_openclip(
    tensors: Mapping[str, np.ndarray], decoder: Mapping[str, np.ndarray], parts: Parts
) -> dict[str, Any]:
    """OpenCLIP's tensors as our parameters, the inverse of `to_openclip` and `decoder_tensors`.

    Args:
      tensors: arrays of any float type by name, without position code. Scale and bias may be
        scalars or hold one value.
      decoder: what `decoder_tensors` gave; empty without a decoder.
      parts: sizes of the model.

    Returns:
      The tree of float32 arrays.

    Raises:
      ValueError: a tensor is missing, unknown or has another shape than `parts` says.
    """
    tensors = {
        name: t.reshape(()) if name in ("logit_scale", "logit_bias") and t.shape == (1,) else t
        for name, t in tensors.items()
    }
    require_same("tensor", _shapes_of(tensors), openclip_shapes(parts))
    require_same("decoder tensor", _shapes_of(decoder), _our_shapes(decoder_entries(parts)))
    params = _tree((entry, _adopt(entry.row, tensors[entry.openclip])) for entry in entries(parts))
    for path, leaf in decoder.items():
        insert(params, path, np.asarray(leaf, np.float32))
    return params


def from_jax(arrays: Mapping[str, np.ndarray], parts: Parts) -> dict[str, Any]:
    """OpenVision's JAX arrays as our parameters.

    Args:
      arrays: by path name. Attention kernels may be matrices or have an axis of heads; positions
        and class token may have leading axes of size 1.
      parts: sizes of the model; a decoder must be of kind "queries".

    Returns:
      The tree of float32 arrays.

    Raises:
      ValueError: an array is missing, unknown or has another shape than `parts` says.
    """
    wanted = [*entries(parts), *decoder_entries(parts)]
    expected = {}
    for entry in wanted:
        layouts = _layouts(entry)
        for name in entry.jax:
            found = arrays[name].shape if name in arrays else None
            expected[name] = found if found in layouts else layouts[0]
    require_same("array", _shapes_of(arrays), expected)

    def leaf(entry: Entry) -> np.ndarray:
        pieces = [np.asarray(arrays[n], np.float32).reshape(entry.piece) for n in entry.jax]
        return np.concatenate(pieces, axis=-1) if len(pieces) > 1 else pieces[0]

    return _tree((entry, leaf(entry)) for entry in wanted)


def openclip_shapes(parts: Parts) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that OpenCLIP has of a model, without its position code."""
    shapes = {}
    for entry in entries(parts):
        shape = entry.shape
        if entry.row.how == LINEAR:
            shape = shape[::-1]
        elif entry.row.how == CONV:
            shape = (shape[1], 3, parts.vision.patch, parts.vision.patch)
        shapes[entry.openclip] = shape
    return shapes


def position_code(rows: int, columns: int, width: int) -> np.ndarray:
    """What OpenCLIP stores as POSITIONS: the fixed code of a grid, the class token's row of zeros
    before it.

    Args:
      rows, columns: of patches.
      width: of the tower.

    Returns:
      float32 [1 + rows*columns, width], as `models.openvision.sincos_2d` has it.
    """
    quarter = width // 4
    frequencies = (10000.0 ** (-np.arange(quarter) / (quarter - 1))).astype(np.float32)
    h, w = np.divmod(np.arange(rows * columns), columns)
    across, down = (axis[:, None].astype(np.float32) * frequencies for axis in (w, h))
    code = [np.sin(across), np.cos(across), np.sin(down), np.cos(down)]
    return np.concatenate([np.zeros((1, width), np.float32), np.concatenate(code, axis=1)])


def _layouts(entry: Entry) -> list[tuple[int, ...]]:
    """The shapes in which OpenVision stores an array, whose options change the layout; first the
    plainest."""
    ours, piece, heads = entry.row.ours, entry.piece, entry.heads
    if entry.row.how == CONV:
        side = round((piece[0] / 3) ** 0.5)
        return [(side, side, 3, piece[1])]
    found = [piece]
    if ours.startswith("attn/qkv/"):
        found.append((*piece[:-1], heads, piece[-1] // heads))
    elif ours == "attn/out/kernel":
        found.append((heads, piece[0] // heads, piece[1]))
    elif ours == "encoder/cls":
        found.append((1, 1, *piece))
    elif ours in ("text/pos_embedding", "logit_scale/value", "logit_bias/value"):
        found.append((1, *piece))
    return found


def _checked_leaves(params: Mapping[str, Any], parts: Parts) -> dict[str, np.ndarray]:
    leaves = flatten(params)
    expected = _our_shapes([*entries(parts), *decoder_entries(parts)])
    require_same("parameter", _shapes_of(leaves), expected)
    return leaves


def _our_shapes(found: list[Entry]) -> dict[str, tuple[int, ...]]:
    depths = Counter(entry.ours for entry in found if entry.layer is not None)
    return {
        entry.ours: entry.shape if entry.layer is None else (depths[entry.ours], *entry.shape)
        for entry in found
    }


def _shapes_of(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _publish(row: Row, leaf: np.ndarray, patch: int) -> np.ndarray:
    if row.how == LINEAR:
        leaf = leaf.T
    elif row.how == CONV:
        leaf = leaf.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
    # safetensors writes memory as it lies: a transposed view would be stored in the wrong order.
    return np.ascontiguousarray(leaf).reshape(leaf.shape)


def _adopt(row: Row, tensor: np.ndarray) -> np.ndarray:
    leaf = np.asarray(tensor, np.float32)
    if row.how == LINEAR:
        leaf = leaf.T
    elif row.how == CONV:
        leaf = leaf.transpose(2, 3, 1, 0).reshape(-1, len(leaf))
    return leaf


def _tree(leaves: Iterable[tuple[Entry, np.ndarray]]) -> dict[str, Any]:
    """Our tree of leaves, those of the blocks stacked."""
    params: dict[str, Any] = {}
    stacks: dict[str, list[np.ndarray]] = {}
    for entry, leaf in leaves:
        if entry.layer is None:
            insert(params, entry.ours, np.ascontiguousarray(leaf).reshape(leaf.shape))
        else:
            stacks.setdefault(entry.ours, []).append(leaf)
    for path, stack in stacks.items():
        insert(params, path, np.stack(stack))
    return params
