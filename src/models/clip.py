"""An image-text model: a vision tower, and with it a text tower, a caption decoder or both.

OpenVision (arXiv 2505.04601) has both, OpenVision 2 (arXiv 2509.01644) the decoder alone, CLIP
(arXiv 2103.00020) and SigLIP (arXiv 2303.15343) the text tower alone. Parameters are a plain dict,
docs/architecture.md states the tree.

Shape suffixes: B batch, L image tokens, T text tokens, O output tokens, D width, E embedding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .captioning import CaptionConfig, CaptionDecoder
from .config import ViTConfig, require_known
from .mlp import INIT
from .openvision import OpenVisionConfig, OpenVisionViT
from .text import TextConfig, TextEncoder
from .vit import ViT

LOSSES = ("softmax", "sigmoid")

# CLIP's and SigLIP's.
_SCALES = {"softmax": 1 / 0.07, "sigmoid": 10.0}
_BIAS = -10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The parts of an image-text model.

    Attributes:
      vision: OpenVision's tower, or this project's own ViT.
      text: the text tower, or None: then there is no contrastive loss, no `image_head` and no
        scale.
      decoder: the caption decoder, or None.
      embed_dim: E, the text tower's; None without one.
      loss: "softmax" or "sigmoid"; it sets how scale and bias start. Softmax has no bias.
    """

    vision: OpenVisionConfig | ViTConfig
    text: TextConfig | None = None
    decoder: CaptionConfig | None = None
    embed_dim: int | None = None
    loss: str = "softmax"

    def __post_init__(self) -> None:
        require_known("ClipConfig.loss", self.loss, LOSSES)
        if self.text is None and self.decoder is None:
            raise ValueError("ClipConfig has neither text nor decoder: nothing to train it with")
        embed_dim = None if self.text is None else self.text.embed_dim
        if self.embed_dim != embed_dim:
            raise ValueError(
                f"ClipConfig.embed_dim = {self.embed_dim} must be the text tower's, {embed_dim}"
            )
        if self.decoder is None:
            return
        _require_same("image_width", self.decoder.image_width, "vision", self.vision.width)
        if self.decoder.kind == "queries":
            if self.text is None:
                raise ValueError(
                    "ClipConfig.decoder of kind 'queries' reads a text tower's tokens: set text, "
                    "or take kind 'causal'"
                )
            _require_same("text_width", self.decoder.text_width, "text", self.text.width)


def vision_tower(config: ClipConfig) -> ViT | OpenVisionViT:
    """The module of the vision tower."""
    if isinstance(config.vision, OpenVisionConfig):
        return OpenVisionViT(config.vision)
    return ViT(config.vision)


def init(config: ClipConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh parameters, float32; those of one part don't depend on which others there are.

    Args:
      config: the model.
      key: PRNG key.

    Returns:
      `encoder`, and where there is a text tower `text`, `image_head`, `logit_scale` and for the
      sigmoid loss `logit_bias`, and where there is a decoder `decoder`.
    """
    vision, text, decoder = config.vision, config.text, config.decoder
    keys = {
        name: jax.random.fold_in(key, number)
        for number, name in enumerate(("encoder", "image_head", "text", "decoder"))
    }
    patches_BLP = jnp.zeros((1, 1, 3 * vision.patch**2), jnp.uint8)
    positions_BL3 = jnp.zeros((1, 1, 3), jnp.int32)
    params = {
        "encoder": vision_tower(config).init(keys["encoder"], patches_BLP, positions_BL3)["params"]
    }
    if text is not None:
        ids_BT = jnp.zeros((1, text.context_length), jnp.int32)
        params["text"] = TextEncoder(text).init(keys["text"], ids_BT)["params"]
        params["image_head"] = {"kernel": INIT(keys["image_head"], (vision.width, text.embed_dim))}
        scale = math.log(_SCALES[config.loss])
        params["logit_scale"] = {"value": jnp.float32(scale)}
        if config.loss == "sigmoid":
            params["logit_bias"] = {"value": jnp.float32(_BIAS)}
    if decoder is not None:
        tokens_BLD = jnp.zeros((1, 1, decoder.image_width))
        if decoder.kind == "queries":
            context = jnp.zeros((1, 2, decoder.text_width))
        else:
            context = jnp.zeros((1, 1), jnp.int32)
        module = CaptionDecoder(decoder)
        params["decoder"] = module.init(keys["decoder"], tokens_BLD, context)["params"]
    return params


def encode_image(
    config: ClipConfig, params: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """What the vision tower says of a batch: `tokens` [B, L, D] and `pooled` [B, D].

    Args:
      config: the model.
      params: its parameters.
      batch: `patches`, `positions` and `length` of the loader.
    """
    inputs = (batch["patches"], batch["positions"], batch["length"])
    return vision_tower(config).apply({"params": params["encoder"]}, *inputs)


def embed_image(
    config: ClipConfig, params: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Images -> embeddings of norm 1, float32 [B, E], and their tokens [B, L, D].

    Args:
      config: the model.
      params: its parameters.
      batch: `patches`, `positions` and `length` of the loader.

    Raises:
      ValueError: the model has no text tower, so no common embedding.
    """
    _require_text(config)
    out = encode_image(config, params, batch)
    kernel_DE = params["image_head"]["kernel"]
    pooled_BD = out["pooled"].astype(jnp.float32)
    return _unit(pooled_BD @ kernel_DE), out["tokens"]


def embed_text(
    config: ClipConfig, params: Mapping[str, Any], ids_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Texts -> embeddings of norm 1, float32 [B, E], and their tokens [B, T, D].

    Args:
      config: the model.
      params: its parameters.
      ids_BT: int32, of the text tower's context length.

    Raises:
      ValueError: the model has no text tower, or the texts have another length.
    """
    text = _require_text(config)
    out = TextEncoder(text).apply({"params": params["text"]}, ids_BT)
    return _unit(out["pooled"]), out["tokens"]


def caption(
    config: ClipConfig,
    params: Mapping[str, Any],
    image_tokens_BLD: jax.Array,
    context: jax.Array,
    lengths_B: jax.Array | None = None,
) -> jax.Array:
    """The decoder's hidden states [B, O, D]; `captioning.CaptionDecoder` states the arguments.

    Raises:
      ValueError: the model has no decoder, or an argument does not fit it.
    """
    if config.decoder is None:
        raise ValueError("ClipConfig.decoder = None: this model writes no captions")
    decoder = CaptionDecoder(config.decoder)
    return decoder.apply({"params": params["decoder"]}, image_tokens_BLD, context, lengths_B)


def _unit(x_BE: jax.Array) -> jax.Array:
    # The square is bounded from below, not the norm: the norm's gradient at 0 is not finite.
    squares_B1 = jnp.sum(x_BE * x_BE, axis=-1, keepdims=True)
    return x_BE * jax.lax.rsqrt(jnp.maximum(squares_B1, 1e-24))


def _require_text(config: ClipConfig) -> TextConfig:
    if config.text is None:
        raise ValueError("ClipConfig.text = None: without a text tower there is no embedding")
    return config.text


def _require_same(field: str, value: int | None, part: str, width: int) -> None:
    if value != width:
        raise ValueError(
            f"ClipConfig.decoder.{field} = {value} must be the {part} tower's width, {width}"
        )
