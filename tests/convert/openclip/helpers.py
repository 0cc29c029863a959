"""Comparing trees, and OpenVision's layout of one."""

from __future__ import annotations

import jax
import numpy as np

from codecvit.convert.names import flatten
from codecvit.convert.openclip.table import decoder_entries, entries


def same_trees(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)


def in_their_jax(params, parts, heads_axis):
    """Our parameters as OpenVision's trainer stores them, in either of its two layouts."""
    leaves, arrays = flatten(params), {}
    for entry in (*entries(parts), *decoder_entries(parts)):
        leaf = leaves[entry.ours] if entry.layer is None else leaves[entry.ours][entry.layer]
        pieces = np.split(leaf, len(entry.jax), axis=-1) if leaf.ndim else [leaf]
        for name, piece in zip(entry.jax, pieces, strict=True):
            if heads_axis and any(f"/{part}/" in name for part in ("query", "key", "value")):
                piece = piece.reshape(*piece.shape[:-1], entry.heads, -1)
            elif heads_axis and name.endswith("/out/kernel"):
                piece = piece.reshape(entry.heads, -1, piece.shape[-1])
            elif name == "img/embedding/kernel":
                piece = piece.reshape(parts.vision.patch, parts.vision.patch, 3, -1)
            elif name == "img/cls":
                piece = piece[None, None]
            elif name == "txt/pos_embedding":
                piece = piece[None]
            elif name in ("t", "b"):
                piece = piece.reshape(1)
            arrays[name] = np.array(piece)
    return arrays
