"""How many visual tokens one visual has, and which group each belongs to: for the text around them.

Known from positions and numbers of frames alone: data code expands `<image>` and `<video>` with
it, and the model checks the result.

Shape suffixes: L patches, N visual tokens, A (patch, cell) pairs, T time cells, 3 (t, h, w).
"""

from __future__ import annotations

import numpy as np
import torch

from .config import LlavaConfig
from .pooling import Arrangement, arrange
from .shared_cells import Places, arrange_all, frame_places


def num_visual_tokens(
    config: LlavaConfig, positions: np.ndarray, grid: tuple[int, int], frames: int = 0
) -> int:
    """Visual tokens of one visual, the number of -200 that stand for it.

    Args:
      config: of the model.
      positions: integers [L, 3], (t, h, w) of its patches; L may be 0 where there are frames.
      grid: rows and columns of patches in its frames.
      frames: of it that are shared by encoders of frames; 1 of an image.

    Raises:
      ValueError: positions and grid disagree, or no encoder sees the visual.
    """
    if not config.encoders:
        return int(_arrange_one(config, positions, grid).counts_V)
    counts = [int(p.counts_V) for p in _plans(config, positions, grid, frames).values()]
    return sum(counts) if config.in_turn else max(counts)


def visual_token_groups(
    config: LlavaConfig,
    positions: np.ndarray,
    groups: np.ndarray,
    grid: tuple[int, int],
    frames: int = 0,
) -> np.ndarray:
    """The group that each visual token of one visual belongs to, for text between groups.

    A token made of patches of several groups belongs to the first of them; if a token before it
    belongs to a later group (blocks of the merger on a seam), to that one: groups never decrease.
    Of several encoders those of the patches decide; tokens one encoder after another ("concat",
    "dual_stream") are all of the first group.

    Args:
      config: of the model.
      positions: integers [L, 3], (t, h, w) of its patches.
      groups: integers [L], non-decreasing, the group of each patch.
      grid: rows and columns of patches in its frames.
      frames: as for `num_visual_tokens`.

    Returns:
      int64 [num_visual_tokens], non-decreasing.

    Raises:
      ValueError: groups don't match the positions, decrease, or disagree with the order of time.
    """
    groups = np.asarray(groups)
    if groups.shape != (len(positions),) or (np.diff(groups) < 0).any():
        raise ValueError(
            f"groups must be {len(positions)} non-decreasing integers, one per position, got "
            f"{list(groups.shape)}"
        )
    if config.in_turn or not len(positions):
        return np.zeros(num_visual_tokens(config, positions, grid, frames), np.int64)
    if config.projector != "merger" and not config.pools:
        return groups.astype(np.int64)
    if config.encoders:
        assert config.patch_encoder is not None, "patches have an encoder that reads them"
        plan = _plans(config, positions, grid, frames)[config.patch_encoder.name]
    else:
        plan = _arrange_one(config, positions, grid)
    group_L = torch.from_numpy(groups.astype(np.int64))
    # Pooled tokens carry values from other times: what counts is the time cell they stand for.
    of_cell_A = plan.cell_A if config.projector == "merger" else plan.step_C[plan.cell_A]
    of_token_N = plan.token_N if config.projector == "merger" else plan.step_N
    last = int(group_L.max())
    first = torch.full((int(torch.cat([of_cell_A, of_token_N]).max()) + 1,), last + 1)
    first.scatter_reduce_(0, of_cell_A, group_L[plan.source_A], "amin")
    group_N = _filled(first, last)[of_token_N]
    by_step = torch.full((int(plan.step_N.max()) + 1,), last)
    by_step.scatter_reduce_(0, plan.step_N, group_N, "amin")
    if bool((by_step.diff() < 0).any()):
        raise ValueError(
            "groups must follow the time of their patches: a later t lies in an earlier group"
        )
    return group_N.cummax(0).values.numpy()


def _filled(first_T: torch.Tensor, last: int) -> torch.Tensor:
    """Groups of time cells; one without patches belongs to the group of the cell before it."""
    own_T = torch.arange(len(first_T))
    before_T = torch.where(first_T <= last, own_T, -1).cummax(0).values
    return torch.where(before_T >= 0, first_T[before_T.clamp(min=0)], 0)


def _plans(
    config: LlavaConfig, positions: np.ndarray, grid: tuple[int, int], frames: int
) -> dict[str, Arrangement]:
    """The arrangements of one visual by encoder, those alone that see it."""
    places = {}
    for entry in config.encoders:
        if entry.reads_patches:
            positions_L3 = torch.from_numpy(np.asarray(positions, np.int64).reshape(-1, 3))
            lengths_V, grids_V2 = torch.tensor([len(positions_L3)]), torch.tensor([[*grid]])
            places[entry.name] = Places(positions_L3, lengths_V, grids_V2)
        else:
            places[entry.name] = frame_places(entry, torch.tensor([frames]))
    plans = {name: p for name, p in arrange_all(config, places).items() if p is not None}
    if not plans:
        raise ValueError(
            f"a visual of {len(positions)} patches and {frames} frames is seen by none of the "
            f"encoders {', '.join(config.encoder_names)}"
        )
    return plans


def _arrange_one(config: LlavaConfig, positions: np.ndarray, grid: tuple[int, int]) -> Arrangement:
    positions_L3 = torch.from_numpy(np.asarray(positions, np.int64))
    return arrange(config, positions_L3, torch.tensor([len(positions_L3)]), torch.tensor([[*grid]]))
