"""LanguageBind-Video: CLIP's vision tower with attention over time in front of each block.

After the description and the parameter names of github.com/PKU-YuanGroup/LanguageBind (arXiv
2310.01852), whose folder `LanguageBind_Video_merge` this is to read: a CLIP of which the text side
is left alone. Frames are seen 8 at a time; MERV's 16 are two chunks.

Shape suffixes: B clips, c frames of a clip, M tokens of a frame (the class token first), X = B * c
or B * M sequences, S tokens of a sequence, D width, S side of a frame in pixels, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel

from .attention import attend, draw
from .spec import (
    NORM,
    EncoderSpec,
    Layer,
    blocks_before,
    channels_first,
    chunked,
    clip_frames,
    fixed_grid,
    require_clip,
    square_grid,
    without_prefix,
)
from .vits import BESIDE_VISION


class LanguageBindVideoConfig(PretrainedConfig):
    """The vision half of a published configuration, under its names; others of it are kept.

    Args:
      hidden_size, intermediate_size, num_hidden_layers, num_attention_heads: of the blocks.
      image_size, patch_size: pixels.
      hidden_act: of the blocks' MLP.
      layer_norm_eps: of all normalisations.
      num_frames: of a clip; the embedding of time has as many entries.
      initializer_range: of a freshly drawn model.

    Raises:
      ValueError: the configuration is of the image tower, without attention over time.
    """

    model_type = "languagebind_video_vision"

    def __init__(
        self,
        hidden_size: int = 1024,
        intermediate_size: int = 4096,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        image_size: int = 224,
        patch_size: int = 14,
        hidden_act: str = "gelu",
        layer_norm_eps: float = 1e-5,
        num_frames: int = 8,
        initializer_range: float = 0.02,
        add_time_attn: bool = True,
        **kwargs: Any,
    ) -> None:
        if not add_time_attn:
            raise ValueError(
                "add_time_attn = False is LanguageBind's tower for images: name a video tower, or "
                "read this one as kind clip"
            )
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.num_frames = num_frames
        self.initializer_range = initializer_range
        super().__init__(**kwargs)


class LanguageBindAttention(nn.Module):
    """Self-attention within each sequence, CLIP's parameters."""

    def __init__(self, config: LanguageBindVideoConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_XSD: torch.Tensor) -> torch.Tensor:
        parts = (self.q_proj(x_XSD), self.k_proj(x_XSD), self.v_proj(x_XSD))
        return self.out_proj(attend(self, *parts, heads=self.config.num_attention_heads))


class LanguageBindMLP(nn.Module):
    def __init__(self, config: LanguageBindVideoConfig) -> None:
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class LanguageBindVideoLayer(GradientCheckpointingLayer):
    """Attention over time at each place, then over places in each frame, then the MLP."""

    def __init__(self, config: LanguageBindVideoConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = LanguageBindAttention(config)
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = LanguageBindMLP(config)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        self.temporal_embedding = nn.Parameter(torch.zeros(1, config.num_frames, width))
        self.temporal_attn = LanguageBindAttention(config)
        self.temporal_layer_norm1 = nn.LayerNorm(width, eps=eps)

    def forward(self, x_BcMD: torch.Tensor) -> torch.Tensor:
        x_BcMD = x_BcMD + self.temporal_embedding[:, :, None]
        x_BMcD = self.temporal_layer_norm1(x_BcMD).transpose(1, 2)
        mixed_XcD = self.temporal_attn(x_BMcD.flatten(0, 1))
        x_BcMD = x_BcMD + mixed_XcD.view_as(x_BMcD).transpose(1, 2)
        mixed_XMD = self.self_attn(self.layer_norm1(x_BcMD).flatten(0, 1))
        x_BcMD = x_BcMD + mixed_XMD.view_as(x_BcMD)
        return x_BcMD + self.mlp(self.layer_norm2(x_BcMD))


class LanguageBindEmbeddings(nn.Module):
    """Patches of a frame behind a class token, with the place of each."""

    def __init__(self, config: LanguageBindVideoConfig) -> None:
        super().__init__()
        rows, columns = square_grid(config)
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(rows * columns + 1, width)

    def forward(self, frames_X3SS: torch.Tensor) -> torch.Tensor:
        patches_XND = self.patch_embedding(frames_X3SS).flatten(2).transpose(1, 2)
        first_X1D = self.class_embedding.expand(len(patches_XND), 1, -1)
        return torch.cat([first_X1D, patches_XND], dim=1) + self.position_embedding.weight


class LanguageBindEncoder(nn.Module):
    def __init__(self, config: LanguageBindVideoConfig) -> None:
        super().__init__()
        blocks = (LanguageBindVideoLayer(config) for _ in range(config.num_hidden_layers))
        self.layers = nn.ModuleList(blocks)


class LanguageBindTransformer(nn.Module):
    def __init__(self, config: LanguageBindVideoConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.embeddings = LanguageBindEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(width, eps=eps)  # so it is spelled in published files
        self.encoder = LanguageBindEncoder(config)
        self.post_layernorm = nn.LayerNorm(width, eps=eps)

    def blocks(self, layer: Layer) -> nn.ModuleList:
        return self.encoder.layers[: blocks_before(layer, len(self.encoder.layers))]


class LanguageBindVideoModel(PreTrainedModel):
    """The vision tower of LanguageBind-Video."""

    config_class = LanguageBindVideoConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LanguageBindVideoLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LanguageBindVideoConfig) -> None:
        super().__init__(config)
        self.vision_model = LanguageBindTransformer(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        draw(module, self.config.initializer_range)

    def forward(self, pixel_values: torch.Tensor, layer: Layer = NORM) -> torch.Tensor:
        """Hidden states of clips.

        Args:
          pixel_values: normalised, [B, c, 3, S, S]; c is `config.num_frames`.
          layer: hidden state, see `spec`.

        Returns:
          [B, c, M, D].
        """
        batch, frames = pixel_values.shape[:2]
        require_clip(self.config, frames)
        model = self.vision_model
        x_XMD = model.pre_layrnorm(model.embeddings(pixel_values.flatten(0, 1)))
        x_BcMD = x_XMD.unflatten(0, (batch, frames))
        for block in model.blocks(layer):
            x_BcMD = block(x_BcMD)
        return model.post_layernorm(x_BcMD) if layer == NORM else x_BcMD


def _features(
    tower: LanguageBindVideoModel, frames_BcSS3: torch.Tensor, layer: Layer
) -> torch.Tensor:
    grid = fixed_grid(tower.config, frames_BcSS3.shape[2])
    x_BcMD = tower(channels_first(frames_BcSS3), layer)
    return without_prefix(x_BcMD.flatten(0, 1), grid, 1).unflatten(0, x_BcMD.shape[:2])


def _used(tower: LanguageBindVideoModel, layer: Layer) -> Iterator[nn.Module]:
    model = tower.vision_model
    yield model.embeddings
    yield model.pre_layrnorm
    yield from model.blocks(layer)
    if layer == NORM:
        yield model.post_layernorm


LANGUAGEBIND = EncoderSpec(
    classes=((LanguageBindVideoConfig, LanguageBindVideoModel),),
    features=chunked(_features, clip_frames),
    used=_used,
    grid=fixed_grid,
    chunk_of=clip_frames,
    native_frames=8,
    chunk=8,
    resize="crop",
    ignored=BESIDE_VISION,
)
