"""Where the tokens of several encoders meet: the same cells of space and time for all of them.

A patch stands at (t, h, w), t a slot of the 64-slot time axis; so do the features of frames, whose
grid is that of their encoder. A cell is a share of the picture and of the time that is shown.

Shape suffixes: V visuals, E encoders, L features of all visuals, T time steps, 3 (t, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from ...sequence import NUM_SLOTS
from ..encoders.entry import EncoderEntry
from .config import LlavaConfig
from .pooling import Arrangement, GivenCells, arrange, time_steps


class Places(NamedTuple):
    """What the features of one encoder stand for.

    Attributes:
      positions_L3: integers (t, h, w) of each feature, visual after visual.
      lengths_V: features of each visual; 0 where the encoder does not see it.
      grids_V2: rows and columns of features in a frame.
    """

    positions_L3: torch.Tensor
    lengths_V: torch.Tensor
    grids_V2: torch.Tensor

    def of(self, here_V: torch.Tensor) -> Places:
        """Those of some of the visuals, where `here_V` is true."""
        if bool(here_V.all()):
            return self
        here_L = here_V.repeat_interleave(self.lengths_V)
        return Places(self.positions_L3[here_L], self.lengths_V[here_V], self.grids_V2[here_V])


def frame_places(entry: EncoderEntry, counts_V: torch.Tensor) -> Places:
    """Where the features of an encoder of frames stand.

    Args:
      entry: the encoder.
      counts_V: shared frames of each visual; 1 of an image, 0 where there are none.
    """
    device, (rows, columns) = counts_V.device, entry.grid
    h_w = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2)
    parts, lengths = [torch.zeros(0, 3, dtype=torch.long)], []
    for count in counts_V.tolist():
        steps = entry.steps(count) if count else 0
        t_T = torch.arange(steps) * (NUM_SLOTS - 1) / max(steps - 1, 1)
        t_L = t_T.round().long().repeat_interleave(len(h_w))
        parts.append(torch.cat([t_L[:, None], h_w.repeat(steps, 1)], dim=1))
        lengths.append(steps * len(h_w))
    lengths_V = torch.tensor(lengths, device=device)
    grids_V2 = torch.tensor([[rows, columns]], device=device).expand(len(counts_V), -1)
    return Places(torch.cat(parts).to(device), lengths_V, grids_V2)


def arrange_all(
    config: LlavaConfig, places: Mapping[str, Places], mask_VE: torch.Tensor | None = None
) -> dict[str, Arrangement | None]:
    """How the features of every encoder become its tokens.

    Where a projector pools to the cells of `pool`, these are the same for all encoders: `pool[0]`
    of time unless the visual is still, `pool[1]` times `pool[2]` of space. `pool_level` goes by
    each encoder's own grid.

    Args:
      config: of the model.
      places: by encoder.
      mask_VE: false where an encoder is left out; columns as in `config.encoder_names`.

    Returns:
      By encoder, of the visuals that it sees and that are not masked; None where there are none.

    Raises:
      ValueError: as `arrange`.
    """
    here = presence(config, places, mask_VE)
    shapes_V3 = None
    if config.pools and not config.pool_level:
        shapes_V3 = _shapes(config, places)
    plans: dict[str, Arrangement | None] = {}
    for name, at in places.items():
        if not bool(here[name].any()):
            plans[name] = None
            continue
        given = None
        if shapes_V3 is not None:
            slots = config.entry(name).reads_patches and not config.attends
            given = GivenCells(shapes_V3[here[name]], slots, config.equal_tokens)
        plans[name] = arrange(config, *at.of(here[name]), given)
    return plans


def presence(
    config: LlavaConfig, places: Mapping[str, Places], mask_VE: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """By encoder, bool [V]: whether it sees a visual, and is not masked for it.

    Raises:
      ValueError: the mask has another shape.
    """
    here = {name: at.lengths_V > 0 for name, at in places.items()}
    if mask_VE is None:
        return here
    shape = (len(next(iter(here.values()))), len(config.encoder_names))
    if mask_VE.shape != shape or mask_VE.dtype != torch.bool:
        raise ValueError(
            f"encoder_mask must be bool {list(shape)}, of visuals and the encoders "
            f"{', '.join(config.encoder_names)}, got {mask_VE.dtype} {list(mask_VE.shape)}"
        )
    masks = dict(zip(config.encoder_names, mask_VE.unbind(1), strict=True))
    return {name: there_V & masks[name].to(there_V.device) for name, there_V in here.items()}


def _shapes(config: LlavaConfig, places: Mapping[str, Places]) -> torch.Tensor:
    """Cells (t, h, w) of each visual, [V, 3]; one of time where no encoder sees a second step."""
    steps = []
    for at in places.values():
        V = len(at.lengths_V)
        if len(at.positions_L3):
            ids_L = torch.arange(V, device=at.lengths_V.device).repeat_interleave(at.lengths_V)
            steps.append(time_steps(at.positions_L3[:, 0], ids_L, V)[1])
        else:
            steps.append(torch.zeros_like(at.lengths_V))
    still_V = torch.stack(steps).amax(0) <= 1
    time, *space = config.pool
    if config.attends:
        space = [1, 1]
    shapes_V3 = torch.tensor([[time, *space]], device=still_V.device).repeat(len(still_V), 1)
    shapes_V3[still_V, 0] = 1
    return shapes_V3
