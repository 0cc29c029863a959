"""Features of several encoders -> visual tokens: a projector per encoder, then their fusion.

Shape suffixes: V visuals, E encoders, L features of all visuals, N visual tokens, D width of an
encoder, C of the language model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from .config import LlavaConfig
from .fusion import Fusion
from .projectors import Projector, init_weights
from .shared_cells import Places, arrange_all, presence


class Seen(NamedTuple):
    """What one encoder makes of some visuals; may be kept, and given to `forward` again.

    Attributes:
      features: [L, D], visual after visual.
      positions: integers [L, 3], (t, h, w); t a slot of the time axis.
      lengths: integers [V], features of each visual; 0 where the encoder does not see it.
      grids: integers [V, 2], rows and columns of features in a frame.
    """

    features: torch.Tensor
    positions: torch.Tensor
    lengths: torch.Tensor
    grids: torch.Tensor

    @property
    def places(self) -> Places:
        """On the device of the features."""
        device = self.features.device
        return Places(self.positions.to(device), self.lengths.to(device), self.grids.to(device))


class FusedProjector(nn.Module):
    """A projector per encoder, and the fusion of what they make.

    Args:
      config: of a model with `encoders`.

    Attributes:
      encoders: the projectors, by name of the encoder, in the order of the names.
      fusion: see `fusion.Fusion`.
    """

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(
            {n: Projector(config, config.entry(n).width) for n in sorted(config.encoder_names)}
        )
        self.fusion = Fusion(
            config.fusion,
            config.encoder_names,
            config.text_config.hidden_size,
            config.fusion_query,
            config.fusion_bias,
        )

    def forward(
        self, seen: Mapping[str, Seen], mask_VE: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Projects and fuses.

        Args:
          seen: by encoder, all of the same visuals.
          mask_VE: bool; false leaves an encoder out of a visual. Columns as in
            `config.encoder_names`.

        Returns:
          As `Fusion`: tokens [N, C], how many each visual has [V], weights [V, E] or None.

        Raises:
          ValueError: an encoder is missing, or as `arrange_all` and `Fusion`.
        """
        if seen.keys() != self.encoders.keys():
            raise ValueError(
                f"features are of the encoders {sorted(seen)}, the model has {[*self.encoders]}"
            )
        places = {name: x.places for name, x in seen.items()}
        here = presence(self.config, places, mask_VE)
        plans = arrange_all(self.config, places, mask_VE)
        tokens, counts = {}, {}
        for name, projector in self.encoders.items():
            parameter = next(projector.parameters())
            counts[name] = torch.zeros_like(places[name].lengths_V)
            plan = plans[name]
            if plan is None:
                tokens[name] = parameter.new_zeros(0, self.fusion.width)
                continue
            here_L = here[name].repeat_interleave(places[name].lengths_V)
            features_LD = seen[name].features[here_L].to(parameter.dtype)
            tokens[name] = projector(features_LD, places[name].positions_L3[here_L], plan)
            counts[name][here[name]] = plan.counts_V
        return self.fusion(tokens, counts)

    def draw(self, seed: int) -> None:
        """Draws all weights, from a seed and each encoder's name.

        So neither the order of the encoders nor what stands beside one changes its projector.
        """
        for name, module in (*self.encoders.items(), ("", self.fusion)):
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int.from_bytes(digest[:7], "little"))
                module.apply(init_weights)


def weights_by_name(
    config: LlavaConfig, weights_VE: torch.Tensor | None, visuals: Sequence[int]
) -> list[dict[str, float] | None]:
    """What each encoder counts for in each row.

    Args:
      config: of the model.
      weights_VE: of all visuals, row after row; None where the fusion has no weights.
      visuals: of each row.

    Returns:
      The mean weights of each row's visuals, by encoder; None for a row without.
    """
    if weights_VE is None:
        return [None] * len(visuals)
    parts = weights_VE.split(list(visuals))
    means = [part.mean(0).tolist() if len(part) else None for part in parts]
    names = config.encoder_names
    return [None if m is None else dict(zip(names, m, strict=True)) for m in means]
