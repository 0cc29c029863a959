"""Comparing trees, and OpenVision's layouts: its trainer's and its published folders'."""

from __future__ import annotations

import json

import jax
import ml_dtypes
import numpy as np
import torch
from safetensors.numpy import save_file

from codecvit.convert.names import flatten
from codecvit.convert.openclip.names import POSITIONS, position_code, to_openclip
from codecvit.convert.openclip.settings import ClipOrigin, to_openclip_config
from codecvit.convert.openclip.table import decoder_entries, entries

SIZE = 32
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


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


def publish(folder, parts, params, vocabulary, dtype="float32", kind="safetensors"):
    """A folder as OpenVision publishes one: its own configuration, another library's positions."""
    folder.mkdir()
    content = to_openclip_config(parts, ClipOrigin(image_size=SIZE))
    text = content["model_cfg"]["text_cfg"]
    del text["tokenizer_mode"]
    text |= {
        "hf_tokenizer_name": "bert-base-uncased",
        "tokenizer_kwargs": {"strip_sep_token": True},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    words = vocabulary.read_text().replace("[bos]", "[unused0]").replace("[eos]", "[unused1]")
    (folder / "vocab.txt").write_text(words)
    (folder / "tokenizer_config.json").write_text('{"cls_token": "[CLS]", "pad_token": "[PAD]"}')
    tensors = to_openclip(params, parts)
    if parts.bias:  # as OpenCLIP stores them when they are not scalars
        tensors |= {name: tensors[name].reshape(1) for name in ("logit_scale", "logit_bias")}
    code = position_code(SIZE // 8, SIZE // 8, parts.vision.width)
    tensors[POSITIONS] = np.nextafter(code, np.float32(2))
    tensors = {name: t.astype(DTYPES[dtype]) for name, t in tensors.items()}
    if kind == "safetensors":
        save_file(tensors, folder / "open_clip_model.safetensors")
    else:
        as_torch = {
            name: torch.from_numpy(t.astype(np.float32)).to(getattr(torch, dtype))
            for name, t in tensors.items()
        }
        torch.save(as_torch, folder / "open_clip_pytorch_model.bin")
    return folder
