"""What a model makes of its visuals: features, tokens, and these in the places of the text.

Shape suffixes: B rows, S tokens of a row, V visuals, L patches of all visuals, N visual tokens, D
width of the encoder, E of the language model (behind V: encoders).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .config import VISUAL_TOKEN, LlavaConfig
from .encoding import VISUALS, encode_all, encode_patches, idle_visual, unseen
from .fused_projector import Seen
from .pooling import arrange
from .splice import check_counts
from .vision import encoder_of


class VisualEmbedding:
    """The part of `LlavaForConditionalGeneration` that knows encoders and projectors."""

    if TYPE_CHECKING:
        config: LlavaConfig
        vision_tower: Any
        projector: nn.Module
        training: bool
        device: torch.device

        def get_input_embeddings(self) -> nn.Module: ...

    def vision_parameters(self) -> list[nn.Parameter]:
        """The encoders' parameters that features depend on.

        The blocks behind the hidden state that is read and the pooling head never have a gradient.
        """
        config = self.config
        if config.encoders:
            towers = self.vision_tower.items()
            used = [config.entry(n).spec.used(t, config.entry(n).select_layer) for n, t in towers]
        else:
            encoder = encoder_of(config.vision_config.model_type)
            used = [encoder.used(self.vision_tower, config.vision_select_layer)]
        return [p for modules in used for module in modules for p in module.parameters()]

    def encode_visuals(
        self,
        patches: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        grids: torch.Tensor | None = None,
        frames: torch.Tensor | None = None,
        frame_counts: torch.Tensor | None = None,
    ) -> torch.Tensor | dict[str, Seen]:
        """Features of the encoders, which may be kept and given to `forward`.

        Args: as for `forward`.

        Returns:
          [L, D], one per patch, the hidden state `vision_select_layer`; of a model with `encoders`
          those of each with their places, by name.

        Raises:
          ValueError: a shape does not fit.
        """
        config = self.config
        if config.encoders:
            given = (patches, positions, lengths, grids, frames, frame_counts)
            return encode_all(config, self.vision_tower, dict(zip(VISUALS, given, strict=True)))
        if frames is not None or frame_counts is not None:
            raise ValueError("frames are given, and the encoder reads patches")
        spec = encoder_of(config.vision_config.model_type)
        statistics = (config.image_mean, config.image_std)
        layer = config.vision_select_layer
        return encode_patches(
            spec, self.vision_tower, patches, positions, lengths, layer, statistics
        )

    def project_visuals(
        self,
        features: torch.Tensor,
        positions: torch.Tensor,
        lengths: torch.Tensor,
        grids: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Visual tokens of features [L, D]: [N, E], and how many each visual has, [V].

        Of a model with `encoders` call `projector` with what `encode_visuals` gave.
        """
        places = (x.to(features.device) for x in (positions, lengths, grids))
        plan = arrange(self.config, *places)
        dtype = next(self.projector.parameters()).dtype
        tokens = self.projector(features.to(dtype), positions.to(features.device), plan)
        return tokens, plan.counts_V

    def embed(
        self,
        input_ids: torch.Tensor,
        visual_features: torch.Tensor | dict[str, Seen] | None = None,
        encoder_mask: torch.Tensor | None = None,
        **visuals: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Text and visuals as the language model reads them; arguments as for `forward`.

        Returns:
          Embeddings [B, S, E], which may be given to `generate`; and the weights [V, encoders] of
          the fusion, None where it has none or there is no visual.

        Raises:
          ValueError: visual tokens and visuals disagree, a shape does not fit, or a row is longer
            than the language model's context.
        """
        self._check_context(input_ids.shape[1])
        here_BS = input_ids == VISUAL_TOKEN
        embeds_BSE = self.get_input_embeddings()(input_ids.masked_fill(here_BS, 0))
        pixels = (visuals.get("patches"), visuals.get("frames"), visual_features)
        if all(x is None for x in pixels):
            if bool(here_BS.any()):
                raise ValueError(
                    f"input_ids has {int(here_BS.sum())} visual tokens ({VISUAL_TOKEN}), but there "
                    "are no visuals: give patches"
                )
            return (embeds_BSE + self._idle() if self.training else embeds_BSE), None
        idle: torch.Tensor | float = 0.0
        if self.config.encoders:
            if visual_features is None:
                visual_features = self.encode_visuals(**visuals)
            tokens_NE, counts_V, weights_VE = self.projector(visual_features, encoder_mask)
            if self.training and unseen(self.config, visual_features, encoder_mask):
                idle = self._idle()
        else:
            if encoder_mask is not None:
                raise ValueError("encoder_mask is given to a model of one encoder")
            tokens_NE, counts_V = self._classic_tokens(visual_features, **visuals)
            weights_VE = None
        check_counts(here_BS, counts_V)
        tokens_NE = tokens_NE.to(embeds_BSE.dtype)
        return embeds_BSE.masked_scatter(here_BS[..., None], tokens_NE) + idle, weights_VE

    def _classic_tokens(
        self,
        features: torch.Tensor | None,
        patches: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        grids: torch.Tensor | None = None,
        **others: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of the one encoder that reads patches, and how many each visual has."""
        missing = {"positions": positions, "lengths": lengths, "grids": grids}
        if absent := [name for name, value in missing.items() if value is None]:
            raise ValueError(f"visuals need {', '.join(absent)} beside their patches")
        if features is None:
            features = self.encode_visuals(patches, positions, lengths, **others)
        elif len(features) != len(positions):
            raise ValueError(
                f"visual_features has {len(features)} rows for {len(positions)} positions"
            )
        return self.project_visuals(features, positions, lengths, grids)

    def _check_context(self, size: int) -> None:
        limit = getattr(self.config.text_config, "max_position_embeddings", None)
        if limit is not None and size > limit:
            raise ValueError(
                f"a row of {size} tokens (text, visual tokens and new ones) exceeds the language "
                f"model's context of {limit}: use fewer visual tokens or shorter texts"
            )

    def _idle(self) -> torch.Tensor:
        """A zero that depends on all trained parameters of encoders and projector.

        Batches of text alone would otherwise leave them without gradients, and processes that
        have to agree on the gradients would wait for each other.
        """
        visuals = idle_visual(self.config, self.device)
        if self.config.encoders:
            return 0.0 * self.projector(self.encode_visuals(**visuals))[0].sum()
        return 0.0 * self._classic_tokens(None, **visuals)[0].sum()
