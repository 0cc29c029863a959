"""The vision encoder of InternVideo2-Stage2: a ViT with one attention over all tokens of a clip.

After the description and the parameter names of github.com/OpenGVLab/InternVideo (arXiv 2403.15377)
and its use by VideoGPT+: RMS norms, queries and keys normalised over all heads together, layer
scale, no final norm; a frame by itself has position embeddings of its own. The published file
`InternVideo2-stage2_1b-224p-f4.pt` holds text parts and distillation heads besides: they are left
out by name.

Shape suffixes: B clips, c frames of a clip, N tokens of a frame, M = 1 + c * N, D width, S side of
a frame in pixels, 3 RGB.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel

from .attention import attend, draw
from .spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderSpec,
    Layer,
    blocks_before,
    chunked,
    clip_frames,
    fixed_grid,
    require_clip,
    square_grid,
    without_prefix,
)

PUBLISHED_PREFIX = "vision_encoder."
"""Of the encoder's tensors in the published file."""

HEADS = (
    *("clip_pos_embed", "clip_img_pos_embed"),
    *("clip_projector.", "clip_decoder.", "final_clip_decoder."),
)
"""Of distillation: parts of the published encoder that no feature passes through."""


class InternVideo2Config(PretrainedConfig):
    """The defaults are those of InternVideo2-Stage2 1B at 224 pixels and 4 frames.

    Args:
      hidden_size, intermediate_size, num_hidden_layers, num_attention_heads: of the blocks.
      image_size, patch_size: pixels.
      num_frames: of a clip; the position embeddings have as many steps.
      rms_norm_eps: of all normalisations.
      initializer_range: of a freshly drawn model.
      layer_scale_init: of one.
    """

    model_type = "internvideo2_vision"

    def __init__(
        self,
        hidden_size: int = 1408,
        intermediate_size: int = 6144,
        num_hidden_layers: int = 40,
        num_attention_heads: int = 16,
        image_size: int = 224,
        patch_size: int = 14,
        num_frames: int = 4,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        layer_scale_init: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_frames = num_frames
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.layer_scale_init = layer_scale_init
        super().__init__(**kwargs)


class InternVideo2RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return self.weight * wide.to(x.dtype)


class InternVideo2LayerScale(nn.Module):
    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class InternVideo2Attention(nn.Module):
    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.config = config
        width, eps = config.hidden_size, config.rms_norm_eps
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.q_norm = InternVideo2RMSNorm(width, eps)
        self.k_norm = InternVideo2RMSNorm(width, eps)

    def forward(self, x_BMD: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x_BMD).chunk(3, dim=-1)
        heads = self.config.num_attention_heads
        return self.proj(attend(self, self.q_norm(query), self.k_norm(key), value, heads=heads))


class InternVideo2MLP(nn.Module):
    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class InternVideo2Block(GradientCheckpointingLayer):
    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.norm1 = InternVideo2RMSNorm(width, eps)
        self.attn = InternVideo2Attention(config)
        self.ls1 = InternVideo2LayerScale(width, config.layer_scale_init)
        self.norm2 = InternVideo2RMSNorm(width, eps)
        self.mlp = InternVideo2MLP(config)
        self.ls2 = InternVideo2LayerScale(width, config.layer_scale_init)

    def forward(self, x_BMD: torch.Tensor) -> torch.Tensor:
        x_BMD = x_BMD + self.ls1(self.attn(self.norm1(x_BMD)))
        return x_BMD + self.ls2(self.mlp(self.norm2(x_BMD)))


class InternVideo2PatchEmbed(nn.Module):
    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        size = (1, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.hidden_size, size, stride=size)

    def forward(self, clip_B3cSS: torch.Tensor) -> torch.Tensor:
        return self.proj(clip_B3cSS).flatten(2).transpose(1, 2)


class InternVideo2VisionModel(PreTrainedModel):
    """The vision encoder of InternVideo2-Stage2."""

    config_class = InternVideo2Config
    base_model_prefix = ""
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternVideo2Block"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__(config)
        rows, columns = square_grid(config)
        width, tokens = config.hidden_size, rows * columns
        self.patch_embed = InternVideo2PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.num_frames * tokens, width))
        self.img_pos_embed = nn.Parameter(torch.zeros(1, 1 + tokens, width))
        blocks = (InternVideo2Block(config) for _ in range(config.num_hidden_layers))
        self.blocks = nn.ModuleList(blocks)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        draw(module, self.config.initializer_range)

    def forward(self, pixel_values: torch.Tensor, layer: Layer = -2) -> torch.Tensor:
        """Hidden states of clips.

        Args:
          pixel_values: normalised, [B, 3, c, S, S]; c is `config.num_frames`, or 1.
          layer: hidden state, see `spec`.

        Returns:
          [B, M, D], the class token first, then frame after frame.
        """
        frames = pixel_values.shape[2]
        require_clip(self.config, frames, lone=True)
        x_BMD = self.patch_embed(pixel_values)
        first_B1D = self.cls_token.expand(len(x_BMD), -1, -1)
        places_1MD, idle = self.pos_embed, self.img_pos_embed
        if frames == 1:
            places_1MD, idle = idle, places_1MD
        x_BMD = torch.cat([first_B1D, x_BMD], dim=1) + places_1MD
        if self.training:  # processes have to agree on which parameters have a gradient
            x_BMD = x_BMD + 0.0 * idle.sum()
        for block in self.blocks[: blocks_before(layer, len(self.blocks))]:
            x_BMD = block(x_BMD)
        return x_BMD


def _features(
    tower: InternVideo2VisionModel, frames_BcSS3: torch.Tensor, layer: Layer
) -> torch.Tensor:
    rows, columns = fixed_grid(tower.config, frames_BcSS3.shape[2])
    frames = frames_BcSS3.shape[1]
    x_BMD = without_prefix(
        tower(frames_BcSS3.movedim(-1, 1), layer), (frames * rows, columns), prefix=1
    )
    return x_BMD.unflatten(1, (frames, rows * columns))


def _used(tower: InternVideo2VisionModel, layer: Layer) -> Iterator[nn.Module]:
    yield tower.patch_embed
    yield nn.ParameterList([tower.cls_token, tower.pos_embed, tower.img_pos_embed])
    yield from tower.blocks[: blocks_before(layer, len(tower.blocks))]


def published_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The encoder's tensors of a published checkpoint file, under the names of the model here.

    Args:
      path: a .pt or .pth file, read as bare tensors. They may lie under "model" or "module" (as
        DeepSpeed writes them), with the prefix `vision_encoder.` or without.

    Raises:
      ValueError: the file holds no tensors.
    """
    found = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("model", "module"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path} holds no tensors by name: name a published checkpoint")
    if any(name.startswith(PUBLISHED_PREFIX) for name in found):
        prefix = PUBLISHED_PREFIX
        found = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    return found


INTERNVIDEO2 = EncoderSpec(
    classes=((InternVideo2Config, InternVideo2VisionModel),),
    features=chunked(_features, clip_frames, lone_frames=True),
    used=_used,
    grid=fixed_grid,
    chunk_of=clip_frames,
    native_frames=4,
    chunk=4,
    image_mean=IMAGENET_MEAN,
    image_std=IMAGENET_STD,
    has_norm=False,
    ignored=HEADS,
    published_tensors=published_tensors,
)
