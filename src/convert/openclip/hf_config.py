"""Sizes of an image-text model in config.json of our folders for transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...models.captioning import CaptionConfig
from ...models.openvision import OpenVisionConfig
from ...models.text import TextConfig
from .settings import ClipOrigin, Parts, origin_of, require_openvision, whole_number

MODEL_TYPE = "openvision_clip"


def to_hf_config(parts: Parts, origin: ClipOrigin) -> dict[str, Any]:
    """The sizes in config.json of a Hugging Face folder."""
    require_openvision(parts, "this folder")
    vision, text = parts.vision, parts.text
    settings: dict[str, Any] = {
        "image_size": origin.image_size,
        "patch_size": vision.patch,
        "layer_norm_eps": vision.layer_norm_eps,
        "text_layers": 0,
        **_prefixed("vision", vision),
    }
    if text is not None:
        if text.layer_norm_eps != vision.layer_norm_eps:
            raise ValueError(
                f"layer_norm_eps is {vision.layer_norm_eps} in the image tower and "
                f"{text.layer_norm_eps} in the text tower: such a folder has one, export with "
                "--format openclip"
            )
        settings |= {
            "embed_dim": text.embed_dim,
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "use_logit_bias": parts.bias,
            **_prefixed("text", text),
        }
    if parts.decoder is not None:
        settings["decoder"] = dataclasses.asdict(parts.decoder)
    return settings


def from_hf_config(
    settings: Mapping[str, Any], preprocess: Mapping[str, Any], path: Path
) -> tuple[Parts, ClipOrigin]:
    """The inverse of `to_hf_config`.

    Args:
      settings: content of config.json.
      preprocess: OpenCLIP's `preprocess_cfg`.
      path: of config.json, for messages.

    Raises:
      ValueError: a key is missing.
    """
    shared = {"layer_norm_eps": settings.get("layer_norm_eps", 1e-6)}

    def tower(name: str) -> dict[str, Any]:
        theirs = {"width": "width", "depth": "layers", "num_heads": "heads", "mlp_dim": "mlp_dim"}
        fields = {
            ours: whole_number(settings, f"{name}_{key}", path) for ours, key in theirs.items()
        }
        return fields | shared

    patch = whole_number(settings, "patch_size", path)
    text = None
    if whole_number(settings, "text_layers", path):
        names = ("embed_dim", "vocab_size", "context_length")
        fields = {name: whole_number(settings, name, path) for name in names}
        text = TextConfig(**fields, **tower("text"))
    decoder = settings.get("decoder")
    parts = Parts(
        OpenVisionConfig(patch=patch, **tower("vision")),
        text,
        None if decoder is None else CaptionConfig.with_fields(decoder),
        bool(settings.get("use_logit_bias")),
    )
    return parts, origin_of(whole_number(settings, "image_size", path), preprocess, path)


def _prefixed(name: str, config: OpenVisionConfig | TextConfig) -> dict[str, Any]:
    return {
        f"{name}_width": config.width,
        f"{name}_layers": config.depth,
        f"{name}_heads": config.num_heads,
        f"{name}_mlp_dim": config.mlp_dim,
    }
