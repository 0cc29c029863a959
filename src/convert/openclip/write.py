"""Image-text models as folders: for the stock OpenCLIP, or for `AutoModel.from_pretrained`.

Both hold the tokenizer's files and, of a model with a caption decoder, the decoder's weights in a
file of their own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ...data.tokenizers import Tokenizer
from ...files import write_json
from ...models.config import ViTConfig
from ..export import cast, copy_code, export
from ..folder import CLIP_CODE, DECODER, IMAGE_TEXT, OPENCLIP_CONFIG, OPENCLIP_WEIGHTS, whole_folder
from ..names import flatten
from ..weights import parse_size, write_weights
from .card import clip_card
from .hf_config import MODEL_TYPE, to_hf_config
from .names import POSITIONS, decoder_tensors, position_code, to_openclip
from .settings import (
    ClipOrigin,
    Parts,
    preprocess_settings,
    require_openvision,
    to_openclip_config,
)
from .tokenizer_files import write_tokenizer

FORMATS = ("hf", "openclip")
_RESAMPLING = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


def export_clip(
    params: Mapping[str, Any],
    parts: Parts,
    out: str | Path,
    *,
    layout: str = "hf",
    origin: ClipOrigin,
    tokenizer: Tokenizer | None = None,
    positions: np.ndarray | None = None,
    shard_size: str | None = None,
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes an image-text model as a folder.

    Args:
      params: the tree of `models.clip`.
      parts: its sizes.
      out: the folder. An earlier export there is replaced.
      layout: "openclip", which OpenCLIP opens as local-dir:DIR; or "hf", which AutoModel opens. A
        model on our own rotary encoder is written as "hf": the encoder as the published
        onevision-encoder, the rest beside it.
      origin: dtype, image size and preprocessing to state.
      tokenizer: whose files to write; None writes none.
      positions: the position code that an imported folder held, [1 + patches, D]; None computes it.
      shard_size: most tensor bytes of a weight file, such as "5GB"; OpenCLIP reads one file.
      training: the run's resolved configuration, for the model card.
      metrics: the run's last metrics with their step, for the model card.
      overwrite: replace `out` even when it is a folder of something else.

    Returns:
      `out`.

    Raises:
      ValueError: an argument is out of range, the parameters don't fit `parts` or are too large
        for the dtype, the layout has no place for the model, or `out` is taken.
    """
    patch, size = parts.vision.patch, origin.image_size
    if layout not in FORMATS:
        raise ValueError(f"format = {layout!r} must be one of {', '.join(FORMATS)}")
    if size < patch or size % patch:
        raise ValueError(f"image_size = {size} must be a multiple of the patch side {patch}")
    _require_fitting(tokenizer, parts)
    if isinstance(parts.vision, ViTConfig) and layout == "hf":
        return export(
            params["encoder"],
            parts.vision,
            out,
            dtype=origin.dtype,
            image_size=size,
            shard_size=shard_size,
            training=training,
            metrics=metrics,
            overwrite=overwrite,
            beside=lambda new: _write_beside(new, params, parts, origin, tokenizer),
        )
    require_openvision(parts, "OpenCLIP")
    decoder = _cast_all(decoder_tensors(params, parts), origin.dtype)
    if layout == "openclip":
        if shard_size is not None:
            raise ValueError("shard_size: OpenCLIP reads one weight file, leave it out")
        settings = to_openclip_config(parts, origin)
        tensors = to_openclip(params, parts)
        if positions is None:
            positions = position_code(size // patch, size // patch, parts.vision.width)
        tensors[POSITIONS] = positions
        for name in tensors.keys() & {"logit_scale", "logit_bias"}:
            tensors[name] = tensors[name].reshape(origin.scale_shape)
    else:
        settings = to_hf_config(parts, origin)
        tensors = to_openclip(params, parts)
    shard_bytes = None if shard_size is None else parse_size(shard_size)
    tensors = _cast_all(tensors, origin.dtype)

    with whole_folder(out, overwrite) as new:
        if layout == "openclip":
            save_file(tensors, new / OPENCLIP_WEIGHTS, metadata={"format": "pt"})
            write_json(new / OPENCLIP_CONFIG, settings)
        else:
            write_weights(new, tensors, shard_bytes)
            write_json(new / "config.json", _hf_settings(settings, origin), sort_keys=True)
            write_json(
                new / "preprocessor_config.json", _processor_settings(origin), sort_keys=True
            )
            copy_code(new, CLIP_CODE)
        if decoder:
            save_file(decoder, new / DECODER, metadata={"format": "pt"})
        if tokenizer is not None:
            write_tokenizer(new, tokenizer)
        card = clip_card(parts, origin, layout, training, metrics)
        (new / "README.md").write_text(card)
    return Path(out)


def _write_beside(
    folder: Path,
    params: Mapping[str, Any],
    parts: Parts,
    origin: ClipOrigin,
    tokenizer: Tokenizer | None,
) -> None:
    """What a model has beside an encoder of ours, in a file of path names and sizes."""
    rest = flatten({name: tree for name, tree in params.items() if name != "encoder"})
    settings = {"model": parts.settings(), "origin": dataclasses.asdict(origin)}
    header = {"format": "pt", "settings": json.dumps(settings)}
    save_file(_cast_all(rest, origin.dtype), folder / IMAGE_TEXT, metadata=header)
    if tokenizer is not None:
        write_tokenizer(folder, tokenizer)


def _require_fitting(tokenizer: Tokenizer | None, parts: Parts) -> None:
    if tokenizer is None or parts.text is None:
        return
    if tokenizer.vocab_size > parts.text.vocab_size:
        raise ValueError(
            f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} tokens, the text tower knows "
            f"{parts.text.vocab_size}: it was trained with another one"
        )


def _cast_all(tensors: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    return {name: cast(name, tensor, dtype) for name, tensor in tensors.items()}


def _hf_settings(settings: Mapping[str, Any], origin: ClipOrigin) -> dict[str, Any]:
    return {
        "architectures": ["OpenVisionCLIPModel"],
        "auto_map": {
            "AutoConfig": "configuration_openvision_clip.OpenVisionCLIPConfig",
            "AutoModel": "modeling_openvision_clip.OpenVisionCLIPModel",
        },
        "model_type": MODEL_TYPE,
        "dtype": origin.dtype,
        **settings,
    }


def _processor_settings(origin: ClipOrigin) -> dict[str, Any]:
    name, side = "OneVisionEncoderImageProcessor", origin.image_size
    square = {"height": side, "width": side}
    squash = origin.resize_mode == "squash"
    preprocess = preprocess_settings(origin)
    return {
        "auto_map": {"AutoImageProcessor": f"image_processing_onevision_encoder.{name}"},
        "image_processor_type": name,
        "do_resize": True,
        "size": square if squash else {"shortest_edge": side},
        "resample": _RESAMPLING[origin.interpolation],
        "do_center_crop": not squash,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocess["mean"],
        "image_std": preprocess["std"],
    }
