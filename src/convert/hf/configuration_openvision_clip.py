"""Configuration of an OpenVision CLIP model: two transformers, one embedding."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PretrainedConfig

# The first 12 hex digits of the SHA-256 of modeling_openvision_clip.py, for the reason that
# configuration_onevision_encoder.py gives. docs/openclip.md has the command for it.
MODELING_VERSION = "90fedcadcd15"


class OpenVisionCLIPConfig(PretrainedConfig):
    """Sizes of an `OpenVisionCLIPModel`; the defaults are those of OpenVision L/14 at 224 pixels.

    Args:
      embed_dim: width E of the common embedding.
      image_size: side that the image processor makes; the model itself takes every multiple of
        `patch_size`.
      patch_size: side of a patch in pixels.
      vision_width: width of the image tower.
      vision_layers: its blocks.
      vision_heads: its attention heads.
      vision_mlp_dim: hidden width of its MLPs.
      text_width: width of the text tower.
      text_layers: its blocks; 0 where there is no text tower (OpenVision 2), and then no embedding.
      text_heads: its attention heads.
      text_mlp_dim: hidden width of its MLPs.
      context_length: tokens of a text.
      vocab_size: rows of the token embedding.
      layer_norm_eps: added to the variance in every norm.
      use_logit_bias: whether logits have a learned bias (models of the sigmoid loss).

    Raises:
      ValueError: a width is no multiple of its heads, or `vision_width` none of 4.
    """

    model_type = "openvision_clip"

    def __init__(
        self,
        embed_dim: int = 768,
        image_size: int = 224,
        patch_size: int = 14,
        vision_width: int = 1024,
        vision_layers: int = 24,
        vision_heads: int = 16,
        vision_mlp_dim: int = 4096,
        text_width: int = 768,
        text_layers: int = 12,
        text_heads: int = 12,
        text_mlp_dim: int = 3072,
        context_length: int = 80,
        vocab_size: int = 32000,
        layer_norm_eps: float = 1e-6,
        use_logit_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if vision_width % 4 or vision_width % vision_heads:
            raise ValueError(
                f"vision_width = {vision_width} must be a multiple of 4 (sines and cosines of two "
                f"axes) and of vision_heads = {vision_heads}"
            )
        if text_layers and text_width % text_heads:
            raise ValueError(
                f"text_width = {text_width} must be a multiple of text_heads = {text_heads}"
            )
        self.embed_dim = embed_dim
        self.image_size = image_size
        self.patch_size = patch_size
        self.vision_width = vision_width
        self.vision_layers = vision_layers
        self.vision_heads = vision_heads
        self.vision_mlp_dim = vision_mlp_dim
        self.text_width = text_width
        self.text_layers = text_layers
        self.text_heads = text_heads
        self.text_mlp_dim = text_mlp_dim
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.layer_norm_eps = layer_norm_eps
        self.use_logit_bias = use_logit_bias
