"""Which visual tokens a model makes of the patches of a visual: known from positions alone.

Patches come in any number and order, with their positions (t, h, w); nothing here takes them for a
full grid. Bins are those of torch's adaptive pooling: of an axis with n steps, cell k of s covers
the steps i with floor(k*n/s) <= i < ceil((k+1)*n/s); bins overlap where s does not divide n.
The steps on the time axis are the distinct t of a visual, in order.

Shape suffixes: L patches of all visuals together, V visuals, A (patch, cell) pairs, C cells, N
visual tokens, D width, 3 (t, h, w).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ...sequence import NUM_SLOTS
from .config import LlavaConfig


class Arrangement(NamedTuple):
    """How patches become visual tokens.

    Attributes:
      counts_V: visual tokens of each visual.
      source_A: patch of each pair.
      cell_A: cell that this patch is a member of. Of the merger a cell is a block of 2 x 2 patches.
      corner_A: merger: 0..3, place of the patch in its block, (h % 2) * 2 + w % 2; otherwise empty.
      cells: number of cells of all visuals, C.
      token_N: cell from which each visual token takes its value; -1 for the learned vector.
      step_N: number of the time cell of each visual token, counted over all visuals.
      step_C: the same of each cell.
      place_L4: integers (visual, step, h, w) of each patch, where time steps are needed.
    """

    counts_V: torch.Tensor
    source_A: torch.Tensor
    cell_A: torch.Tensor
    corner_A: torch.Tensor
    cells: int
    token_N: torch.Tensor
    step_N: torch.Tensor
    step_C: torch.Tensor
    place_L4: torch.Tensor | None = None


class GivenCells(NamedTuple):
    """Cells that do not follow from the patches of one encoder: several encoders meet in them.

    Attributes:
      shapes_V3: cells (t, h, w) of each visual. An axis may have more cells than steps; each step
        is then in several.
      slots: the steps of the time axis are its slots 0..63, whichever of them there are patches of,
        so that a cell is the same stretch of time for all encoders. Not for the attentive pooler,
        which has nothing to say of a time without patches.
      whole: every cell has to become a token.
    """

    shapes_V3: torch.Tensor
    slots: bool
    whole: bool


def pooled_side(side: int, level: int) -> int:
    """Cells on an axis of `side` patches at `pool_level` p: max(1, round(side / p)), half to even.

    From the pooling levels of VideoGPT+'s fork (github.com/NIneeeeeem/VideoGPT-tokenadapter).
    """
    return max(1, round(side / level))


def time_steps(t_L: torch.Tensor, ids_L: torch.Tensor, V: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of each patch's t among the distinct t of its visual [L], and how many these are [V].

    Args:
      t_L: times, non-negative integers.
      ids_L: visual of each patch, 0..V-1.
      V: number of visuals.
    """
    span = int(t_L.max()) + 1
    keys, inverse_L = torch.unique(ids_L * span + t_L, return_inverse=True)
    steps_V = torch.bincount(keys.div(span, rounding_mode="floor"), minlength=V)
    return inverse_L - (steps_V.cumsum(0) - steps_V)[ids_L], steps_V


def cell_shapes(config: LlavaConfig, steps_V: torch.Tensor, grids_V2: torch.Tensor) -> torch.Tensor:
    """Cells (t, h, w) of each visual, integers [V, 3]; see `LlavaConfig.pool` and `pool_level`."""
    limit = torch.tensor(config.pool, device=steps_V.device)
    t_V = steps_V.clamp(max=config.pool[0])[:, None]
    if config.projector.startswith("attentive"):
        return nn.functional.pad(t_V, (0, 2), value=1)
    if not config.pool_level:
        return torch.cat([t_V, torch.minimum(grids_V2, limit[1:])], dim=1)
    sides = [[pooled_side(n, config.pool_level) for n in grid] for grid in grids_V2.tolist()]
    return torch.cat([t_V, torch.tensor(sides, device=t_V.device)], dim=1)


def cell_pairs(
    index_L3: torch.Tensor, sizes_L3: torch.Tensor, cells_L3: torch.Tensor, start_L: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cells that every patch is a member of.

    Args:
      index_L3: step of the patch on each axis, below `sizes_L3`.
      sizes_L3: steps of each axis.
      cells_L3: cells of each axis.
      start_L: number of the first cell of the patch's visual.

    Returns:
      Patch and cell of each pair, both [A]; cells are numbered visual after visual, in raster
      order.
    """
    first_L3 = (index_L3 * cells_L3).div(sizes_L3, rounding_mode="floor")
    last_L3 = ((index_L3 + 1) * cells_L3 - 1).div(sizes_L3, rounding_mode="floor")
    spans_L3 = last_L3 - first_L3 + 1
    copies_L = spans_L3.prod(1)
    source_A = torch.arange(len(index_L3), device=index_L3.device).repeat_interleave(copies_L)
    # The copies of a patch run over its cells in raster order.
    copy_A = torch.arange(len(source_A), device=source_A.device)
    copy_A = copy_A - (copies_L.cumsum(0) - copies_L)[source_A]
    first_A3, spans_A3, cells_A3 = first_L3[source_A], spans_L3[source_A], cells_L3[source_A]
    w_A = first_A3[:, 2] + copy_A.remainder(spans_A3[:, 2])
    copy_A = copy_A.div(spans_A3[:, 2], rounding_mode="floor")
    h_A = first_A3[:, 1] + copy_A.remainder(spans_A3[:, 1])
    t_A = first_A3[:, 0] + copy_A.div(spans_A3[:, 1], rounding_mode="floor")
    return source_A, start_L[source_A] + (t_A * cells_A3[:, 1] + h_A) * cells_A3[:, 2] + w_A


def arrange(
    config: LlavaConfig,
    positions_L3: torch.Tensor,
    lengths_V: torch.Tensor,
    grids_V2: torch.Tensor,
    given: GivenCells | None = None,
) -> Arrangement:
    """How the patches of some visuals become visual tokens.

    Args:
      config: of the model.
      positions_L3: integers (t, h, w) of each patch, visual after visual, in any order within one.
      lengths_V: patches of each visual.
      grids_V2: rows and columns of patches in a frame of each visual.
      given: cells of a projector that pools, where they are settled elsewhere.

    Raises:
      ValueError: the lengths do not add up, a position lies outside of its grid, or a given cell
        has no value.
    """
    positions_L3, lengths_V, grids_V2 = positions_L3.long(), lengths_V.long(), grids_V2.long()
    _check(positions_L3, lengths_V, grids_V2)
    ids_L = torch.arange(len(lengths_V), device=positions_L3.device).repeat_interleave(lengths_V)
    if config.projector == "merger":
        return _blocks(positions_L3, ids_L, grids_V2)
    if config.pools:
        return _cells(config, positions_L3, ids_L, grids_V2, given)
    own_L = torch.arange(len(positions_L3), device=positions_L3.device)
    return Arrangement(lengths_V, own_L, own_L, own_L[:0], len(own_L), own_L, own_L, own_L)


def _cells(
    config: LlavaConfig,
    positions_L3: torch.Tensor,
    ids_L: torch.Tensor,
    grids_V2: torch.Tensor,
    given: GivenCells | None,
) -> Arrangement:
    """Cells of `pool` or `pool_level`; for the attentive pooler time cells, a token per query."""
    V, device = len(grids_V2), positions_L3.device
    step_L, steps_V = time_steps(positions_L3[:, 0], ids_L, V)
    shapes_V3 = cell_shapes(config, steps_V, grids_V2) if given is None else given.shapes_V3
    index_L3 = torch.cat([step_L[:, None], positions_L3[:, 1:]], dim=1)
    place_L4 = torch.cat([ids_L[:, None], index_L3], dim=1)
    if given is not None and given.slots:
        index_L3, steps_V = positions_L3, torch.full_like(steps_V, NUM_SLOTS)
        if int(positions_L3[:, 0].max()) >= NUM_SLOTS:
            raise ValueError(
                f"positions have t = {int(positions_L3[:, 0].max())}: the time axis has "
                f"{NUM_SLOTS} slots"
            )
    sizes_V3 = torch.cat([steps_V[:, None], grids_V2], dim=1)
    cells_V = shapes_V3.prod(1)
    start_V = cells_V.cumsum(0) - cells_V
    source_A, cell_A = cell_pairs(index_L3, sizes_V3[ids_L], shapes_V3[ids_L], start_V[ids_L])
    C = int(cells_V.sum())
    own_C = torch.arange(C, device=device)
    if config.projector.startswith("attentive"):
        queries = config.pool[1] * config.pool[2]
        token_N = own_C.repeat_interleave(queries)
        return Arrangement(
            cells_V * queries, source_A, cell_A, own_C[:0], C, token_N, token_N, own_C, place_L4
        )
    id_C = torch.arange(V, device=device).repeat_interleave(cells_V)
    place_C = own_C - start_V[id_C]
    area_C = shapes_V3[id_C, 1] * shapes_V3[id_C, 2]
    first_step_V = shapes_V3[:, 0].cumsum(0) - shapes_V3[:, 0]
    step_C = first_step_V[id_C] + place_C.div(area_C, rounding_mode="floor")
    full_C = torch.zeros(C, dtype=torch.bool, device=device)
    full_C[cell_A] = True
    if config.pool_empty == "carry":
        token_C = _carry(full_C, place_C, area_C, start_V[id_C], shapes_V3[id_C, 0])
        kept_C = token_C >= 0
        if given is not None and given.whole and not bool(kept_C.all()):
            visual = int(id_C[~kept_C][0])
            raise ValueError(
                f"visual {visual} has places that no patch of it ever shows, so that pool_empty = "
                "'carry' has nothing to put there, and the other encoders' tokens no counterpart: "
                "take pool_empty = 'learned', or choose patches of every place in the first frame"
            )
    else:
        token_C = torch.where(full_C, own_C, -1)
        kept_C = full_C if config.pool_empty == "drop" else torch.ones_like(full_C)
    counts_V = torch.bincount(id_C[kept_C], minlength=V)
    token_N, step_N = token_C[kept_C], step_C[kept_C]
    return Arrangement(counts_V, source_A, cell_A, own_C[:0], C, token_N, step_N, step_C, place_L4)


def _carry(
    full_C: torch.Tensor,
    place_C: torch.Tensor,
    area_C: torch.Tensor,
    start_C: torch.Tensor,
    steps_C: torch.Tensor,
) -> torch.Tensor:
    """The cell whose value each cell has: its own, or that of the nearest earlier full step.

    Before the first full step of a place it is that step; -1 where no step of the place is full.
    """
    # In the order place by place, step by step, the nearest earlier full cell is a running maximum.
    step_C = place_C.div(area_C, rounding_mode="floor")
    column_C = start_C + place_C.remainder(area_C) * steps_C
    order_C = column_C + step_C
    cell_O = torch.empty_like(order_C)
    cell_O[order_C] = torch.arange(len(order_C), device=order_C.device)
    full_O, first_O = full_C[cell_O], column_C[cell_O]
    own_O, size = torch.arange(len(order_C), device=order_C.device), len(order_C)
    before_O = torch.where(full_O, own_O, -1).cummax(0).values
    after_O = torch.where(full_O, own_O, size).flip(0).cummin(0).values.flip(0)
    after_O = torch.where(after_O < first_O + steps_C[cell_O], after_O, -1)
    source_O = torch.where(before_O >= first_O, before_O, after_O)
    found_O = torch.where(source_O >= 0, cell_O[source_O.clamp(min=0)], -1)
    return found_O[order_C]


def _blocks(positions_L3: torch.Tensor, ids_L: torch.Tensor, grids_V2: torch.Tensor) -> Arrangement:
    """Blocks of 2 x 2 patches (same t, h // 2, w // 2), in the order (t, h, w) of each visual."""
    V, (rows, columns) = len(grids_V2), (grids_V2.amax(0) + 1).div(2, rounding_mode="floor")
    span = positions_L3[:, 0].max() + 1
    t_L, h_L, w_L = positions_L3.unbind(1)
    key_L = ((ids_L * span + t_L) * rows + h_L // 2) * columns + w_L // 2
    keys_C, cell_L = torch.unique(key_L, return_inverse=True)
    frame_C = keys_C.div(rows * columns, rounding_mode="floor")
    counts_V = torch.bincount(frame_C.div(span, rounding_mode="floor"), minlength=V)
    step_C = torch.unique(frame_C, return_inverse=True)[1]
    own_L = torch.arange(len(positions_L3), device=key_L.device)
    token_N = torch.arange(len(keys_C), device=key_L.device)
    corner_L = (h_L % 2) * 2 + w_L % 2
    return Arrangement(counts_V, own_L, cell_L, corner_L, len(keys_C), token_N, step_C, step_C)


def _check(positions_L3: torch.Tensor, lengths_V: torch.Tensor, grids_V2: torch.Tensor) -> None:
    L, V = len(positions_L3), len(lengths_V)
    if V == 0:
        raise ValueError("lengths is empty: without visuals give no patches at all")
    if positions_L3.ndim != 2 or positions_L3.shape[1] != 3:
        raise ValueError(f"positions must be [total, 3], got {list(positions_L3.shape)}")
    if grids_V2.shape != (V, 2):
        raise ValueError(
            f"grids must be [{V}, 2], (rows, columns) of each of {V} visuals, got "
            f"{list(grids_V2.shape)}"
        )
    if int(lengths_V.sum()) != L or int(lengths_V.min()) < 1:
        raise ValueError(
            f"lengths = {lengths_V.tolist()} must be at least 1 each and add up to the {L} rows "
            "of positions"
        )
    limit_L2 = grids_V2.repeat_interleave(lengths_V, dim=0)
    outside_L = (positions_L3 < 0).any(1) | (positions_L3[:, 1:] >= limit_L2).any(1)
    if bool(outside_L.any()):
        row = int(outside_L.nonzero()[0])
        raise ValueError(
            f"positions[{row}] = {positions_L3[row].tolist()} (t, h, w) lies outside of its "
            f"visual's grid of {limit_L2[row].tolist()} (rows, columns)"
        )
