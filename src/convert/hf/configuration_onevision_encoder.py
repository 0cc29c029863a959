"""Configuration of the OneVision encoder, a vision transformer with a 3-D rotary position code.

Field names and defaults are those of the published onevision-encoder (arXiv 2602.08683), so that
code and weights move both ways.
"""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PretrainedConfig

# The first 12 hex digits of the SHA-256 of modeling_onevision_encoder.py. transformers 5 picks the
# model class by the configuration class: of two exports loaded in one process with equal
# configuration files, the second would silently run the first one's modelling code. This constant
# makes the files differ whenever the modelling code does. docs/export.md has the command for it.
MODELING_VERSION = "bd65ef3ca57a"


class OneVisionEncoderConfig(PretrainedConfig):
    """Sizes and options of a `OneVisionEncoderModel`.

    Args:
      hidden_size: width D of the tokens.
      intermediate_size: width of the hidden layer of the MLPs.
      num_hidden_layers: number of transformer blocks.
      num_attention_heads: heads of the blocks and of the pooling head; their width must be a
        multiple of 32.
      num_channels: channels of `pixel_values`.
      image_size: side that the image processor makes; the model itself takes every multiple of
        `patch_size`.
      patch_size: side of a patch in pixels.
      hidden_act: activation of the MLPs by its name in transformers; "gelu" is the exact (erf) one.
      layer_norm_eps: added to the variance in every norm.
      layer_norm_type: only "layer_norm".
      attention_dropout: dropout of attention weights in training.
      initializer_range: standard deviation of freshly drawn weights.
      rope_theta: base of the rotary frequencies.
      rope_temporal_size: slots of the time axis. A plain video may have no more frames than this,
        unless it is None.
      use_head: whether `layernorm_post` and the pooling head exist.

    Raises:
      ValueError: the width of a head is no multiple of 32, or `layer_norm_type` is unknown.
    """

    model_type = "onevision_encoder"

    def __init__(
        self,
        hidden_size: int = 1024,
        intermediate_size: int = 4096,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        num_channels: int = 3,
        image_size: int = 448,
        patch_size: int = 14,
        hidden_act: str = "gelu",
        layer_norm_eps: float = 1e-6,
        layer_norm_type: str = "layer_norm",
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        rope_theta: float = 10000.0,
        rope_temporal_size: int | None = 64,
        use_head: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if hidden_size % (32 * num_attention_heads):
            raise ValueError(
                f"hidden_size = {hidden_size} over num_attention_heads = {num_attention_heads} "
                "must give heads whose width is a multiple of 32: the rotary code splits them 4:6:6"
            )
        if layer_norm_type != "layer_norm":
            raise ValueError(f'layer_norm_type = {layer_norm_type!r} must be "layer_norm"')
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_channels = num_channels
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.layer_norm_type = layer_norm_type
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.rope_theta = rope_theta
        self.rope_temporal_size = rope_temporal_size
        self.use_head = use_head
