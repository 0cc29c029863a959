"""Vision transformers of transformers that read one frame, or one clip, at a time.

Each is named by where its parts are; the blocks behind the hidden state that is read never run.
Paths differ between transformers 4 and 5, hence alternatives.

Shape suffixes: B clips, c frames of a clip, S side of a frame in pixels, 3 RGB, M tokens, N those
of the grid, D width, P side of a patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    VivitConfig,
    VivitModel,
)
from transformers.configuration_utils import PretrainedConfig

from .spec import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    NORM,
    EncoderSpec,
    Layer,
    blocks_before,
    channels_first,
    chunked,
    clip_frames,
    grid_of,
    leaf_parameters,
    require_clip,
    run_blocks,
    square_grid,
    without_prefix,
)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where a model of transformers keeps its parts; of several paths the first that exists.

    Attributes:
      blocks: of the list of blocks.
      norm: of the last normalisation.
      stem: of what stands before the blocks, in order; called one after the other.
      unused: parameters of the stem that features never touch.
      prefix: config -> tokens in front of those of the grid.
      embed: (first part of the stem, pixels [B, 3, S, S] or, of clips, [B, c, 3, S, S]) ->
        [B, M, D].
    """

    blocks: tuple[str, ...]
    norm: tuple[str, ...]
    stem: tuple[tuple[str, ...], ...] = (("embeddings", "vision_model.embeddings"),)
    unused: tuple[str, ...] = ()
    prefix: Callable[[PretrainedConfig], int] = lambda config: 0
    embed: Callable[[nn.Module, torch.Tensor], torch.Tensor] = lambda part, pixels: part(pixels)

    def clip_features(self, tower: nn.Module, pixels: torch.Tensor, layer: Layer) -> torch.Tensor:
        """Hidden state [B, M, D] of images or clips, all tokens."""
        first, *others = (part_of(tower, paths) for paths in self.stem)
        x_BMD = self.embed(first, pixels)
        for part in others:
            x_BMD = part(x_BMD)
        x_BMD = run_blocks(x_BMD, self._blocks(tower, layer))
        return part_of(tower, self.norm)(x_BMD) if layer == NORM else x_BMD

    def used(self, tower: nn.Module, layer: Layer) -> Iterator[nn.Module]:
        """Modules whose parameters the hidden state depends on."""
        for paths in self.stem:
            yield from leaf_parameters(part_of(tower, paths), self.unused)
        yield from self._blocks(tower, layer)
        if layer == NORM:
            yield part_of(tower, self.norm)

    def _blocks(self, tower: nn.Module, layer: Layer) -> nn.ModuleList:
        blocks = part_of(tower, self.blocks)
        return blocks[: blocks_before(layer, len(blocks))]


def part_of(tower: nn.Module, paths: tuple[str, ...]) -> nn.Module:
    """The part of a model that lies at the first of `paths` that exists."""
    for path in paths:
        found: Any = tower
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    raise AttributeError(f"{type(tower).__name__} has none of {paths}")


def per_frame(parts: Parts, grid: Callable[..., tuple[int, int]] = square_grid) -> dict[str, Any]:
    """`features`, `used` and `grid` of an encoder that sees each frame alone."""

    def features(tower: nn.Module, frames_BcSS3: torch.Tensor, layer: Layer) -> torch.Tensor:
        batch, frames, size = frames_BcSS3.shape[:3]
        tokens = parts.clip_features(tower, channels_first(frames_BcSS3.flatten(0, 1)), layer)
        config = tower.config
        tokens = without_prefix(tokens, grid(config, size), parts.prefix(config))
        return tokens.unflatten(0, (batch, frames))

    return {"features": chunked(features), "used": parts.used, "grid": grid}


def _any_size(embeddings: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    # At the configured size this adds the position table as it is.
    return embeddings(pixels, interpolate_pos_encoding=True)


_ENCODER_LAYERS = ("encoder.layers", "vision_model.encoder.layers")
_POST_LAYERNORM = ("post_layernorm", "vision_model.post_layernorm")
_EMBEDDINGS = ("embeddings", "vision_model.embeddings")
BESIDE_VISION = (
    *("text_model.", "text_projection", "visual_projection", "logit_scale", "logit_bias"),
)
"""Tensors of a CLIP or SigLIP that are no part of its vision tower."""

HEADS = ("classifier.", "pooler.")
"""Tensors behind the last hidden state of a classifier."""

CLIP = EncoderSpec(
    classes=((CLIPVisionConfig, CLIPVisionModel),),
    **per_frame(
        Parts(
            blocks=_ENCODER_LAYERS,
            norm=_POST_LAYERNORM,
            stem=(_EMBEDDINGS, ("pre_layrnorm", "vision_model.pre_layrnorm")),
            prefix=lambda config: 1,
            embed=_any_size,
        )
    ),
    resize="crop",
    ignored=BESIDE_VISION,
)

SIGLIP = EncoderSpec(
    classes=((SiglipVisionConfig, SiglipVisionModel),),
    **per_frame(Parts(blocks=_ENCODER_LAYERS, norm=_POST_LAYERNORM, embed=_any_size)),
    image_mean=HALF,
    image_std=HALF,
    ignored=BESIDE_VISION,
)


def _siglip2_embed(embeddings: nn.Module, pixels_B3SS: torch.Tensor) -> torch.Tensor:
    """SigLIP2's embedding, of patches that are flat (row, column, channel).

    All frames have one grid here, so that its position table is resized once.
    """
    patch, side = embeddings.patch_size, embeddings.position_embedding_size
    grid = grid_of(tuple(pixels_B3SS.shape[-2:]), patch)
    cut = pixels_B3SS[..., : grid[0] * patch, : grid[1] * patch]
    cut = cut.unflatten(-2, (grid[0], patch)).unflatten(-1, (grid[1], patch))
    patches_BNK = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    table = embeddings.position_embedding.weight.reshape(side, side, -1)
    places_1ND = embeddings.resize_positional_embeddings(
        table, torch.tensor([grid]), max_length=grid[0] * grid[1]
    )
    return embeddings.patch_embedding(patches_BNK) + places_1ND


def _siglip2_grid(config: PretrainedConfig, image_size: int | None = None) -> tuple[int, int]:
    # Its configuration states a number of patches, and any grid of them is read.
    return grid_of(image_size or SIGLIP2.image_size, config.patch_size)


SIGLIP2 = EncoderSpec(
    classes=((Siglip2VisionConfig, Siglip2VisionModel),),
    **per_frame(
        Parts(blocks=_ENCODER_LAYERS, norm=_POST_LAYERNORM, embed=_siglip2_embed),
        _siglip2_grid,
    ),
    image_mean=HALF,
    image_std=HALF,
    image_size=256,
    ignored=BESIDE_VISION,
)

DINOV2 = EncoderSpec(
    classes=(
        (Dinov2Config, Dinov2Model),
        (Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
    ),
    **per_frame(
        Parts(
            blocks=("encoder.layer", "layers"),
            norm=("layernorm",),
            unused=("mask_token",),
            prefix=lambda config: 1 + getattr(config, "num_register_tokens", 0),
        )
    ),
    image_mean=IMAGENET_MEAN,
    image_std=IMAGENET_STD,
)

_VIVIT_PARTS = Parts(blocks=("layers", "encoder.layer"), norm=("layernorm",))
_VIVIT_TUBELET = 2


def _vivit_grid(config: PretrainedConfig, image_size: int | None = None) -> tuple[int, int]:
    frames, rows, columns = config.tubelet_size
    if frames != _VIVIT_TUBELET:
        raise ValueError(f"tubelet_size = {config.tubelet_size} must have {_VIVIT_TUBELET} frames")
    if image_size not in (None, config.image_size):
        raise ValueError(
            f"image_size = {image_size} must be {config.image_size}: this encoder's position "
            "embeddings fit no other"
        )
    return grid_of(config.image_size, (rows, columns))


def _vivit_features(tower: nn.Module, frames_BcSS3: torch.Tensor, layer: Layer) -> torch.Tensor:
    frames = frames_BcSS3.shape[1]
    rows, columns = _vivit_grid(tower.config, frames_BcSS3.shape[2])
    require_clip(tower.config, frames)
    tokens = _VIVIT_PARTS.clip_features(tower, channels_first(frames_BcSS3), layer)
    steps = frames // _VIVIT_TUBELET
    return without_prefix(tokens, (steps * rows, columns), 1).unflatten(1, (steps, rows * columns))


VIVIT = EncoderSpec(
    classes=((VivitConfig, VivitModel),),
    features=chunked(_vivit_features, clip_frames, tubelet=_VIVIT_TUBELET),
    used=_VIVIT_PARTS.used,
    grid=_vivit_grid,
    chunk_of=clip_frames,
    native_frames=32,
    chunk=32,
    tubelet=_VIVIT_TUBELET,
    select_layer=NORM,
    image_mean=HALF,
    image_std=HALF,
    ignored=HEADS,
)
