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
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.configuration_utils import PretrainedConfig

from .spec import (
    HALF,
    NORM,
    EncoderSpec,
    Layer,
    blocks_before,
    channels_first,
    chunked,
    leaf_parameters,
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
_TEXT_SIDE = ("text_model.", "text_projection", "visual_projection", "logit_scale", "logit_bias")

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
    ignored=_TEXT_SIDE,
)

SIGLIP = EncoderSpec(
    classes=((SiglipVisionConfig, SiglipVisionModel),),
    **per_frame(Parts(blocks=_ENCODER_LAYERS, norm=_POST_LAYERNORM, embed=_any_size)),
    image_mean=HALF,
    image_std=HALF,
    ignored=_TEXT_SIDE,
)
