"""The patch sequence: the one form in which every image and video reaches the model.

Shape suffixes: L patches in the sequence, P patch side in pixels, 3 either RGB or (t, h, w).
Several sequences may share a row (`pack_rows`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NUM_SLOTS = 64
"""Length of the virtual time axis: t lies in [0, 64), as in the published OneVision-Encoder."""


@dataclasses.dataclass(frozen=True, eq=False)
class PatchSequence:
    """Patches of one image or clip with their positions, sorted by (t, h, w), without duplicates.

    Attributes:
      patches: uint8 [L, P, P, 3], RGB.
      positions: int32 [L, 3], columns (t, h, w): t a slot of the 64-slot time axis, h and w raw
        patch indices (row and column of the patch in its frame; in a collage of k frames h runs
        over all k).

    Raises:
      ValueError: an array has the wrong type or shape, or the positions are negative, out of range,
        unsorted or repeated.
    """

    patches: np.ndarray
    positions: np.ndarray

    def __post_init__(self) -> None:
        patches, positions = self.patches, self.positions
        _require_array("patches", patches, np.uint8)
        _require_array("positions", positions, np.int32)
        if patches.ndim != 4 or patches.shape[1] != patches.shape[2] or patches.shape[3] != 3:
            raise ValueError(f"patches must have shape [L, P, P, 3], got {list(patches.shape)}")
        if positions.shape != (len(patches), 3):
            raise ValueError(
                f"positions must have shape [{len(patches)}, 3] to match patches, "
                f"got {list(positions.shape)}"
            )
        if len(patches) == 0:
            raise ValueError("patches is empty: a sequence holds at least one patch")
        if positions.min() < 0:
            row = int(np.argmax((positions < 0).any(axis=1)))
            raise ValueError(f"positions[{row}] = {positions[row].tolist()} is negative")
        if positions[:, 0].max() >= NUM_SLOTS:
            row = int(np.argmax(positions[:, 0] >= NUM_SLOTS))
            raise ValueError(
                f"positions[{row}] has t = {positions[row, 0]}; t must be below {NUM_SLOTS}"
            )
        _require_sorted(positions)

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.patches.shape[1]

    def flat(self) -> np.ndarray:
        """The patches as the model takes them: uint8 [L, P*P*3], flat (row, column, channel)."""
        return self.patches.reshape(len(self), -1)


def slot_times(num_samples: int) -> np.ndarray:
    """Slots of evenly sampled frames on the time axis: round(i*63/(m-1)), half to even.

    Args:
      num_samples: number of sampled frames m, 1 to 64.

    Returns:
      int32 [m], strictly increasing; [0] for a single frame.
    """
    if not 1 <= num_samples <= NUM_SLOTS:
        raise ValueError(f"num_samples = {num_samples} must lie in 1..{NUM_SLOTS}")
    if num_samples == 1:
        return np.zeros(1, np.int32)
    return np.rint(np.arange(num_samples) * (NUM_SLOTS - 1) / (num_samples - 1)).astype(np.int32)


class PackedRows(NamedTuple):
    """Several sequences in each row of a batch; B rows, L the budget, K = P*P*3, n sequences.

    Attributes:
      patches: uint8 [B, L, K], flat (row, column, channel); zeros where a row has padding.
      positions: int32 [B, L, 3].
      segment_ids: int32 [B, L], 0, 1, ... for the sequences of a row, -1 for padding.
      places: int32 [n, 2], row and segment of each sequence that was given.
    """

    patches: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    places: np.ndarray


def pack_rows(sequences: Sequence[PatchSequence], budget: int) -> PackedRows:
    """Packs sequences of any length into as few rows as first fit, longest first, finds.

    For images of their native size; the model keeps the sequences of a row apart by their ids.

    Args:
      sequences: of one patch size.
      budget: tokens of a row, L.

    Raises:
      ValueError: there are none, their patch sizes differ, or one is longer than the budget.
    """
    if not sequences:
        raise ValueError("there are no sequences to pack")
    sides = {sequence.patch for sequence in sequences}
    if len(sides) > 1:
        raise ValueError(f"sequences of one batch must have one patch size, got {sorted(sides)}")
    lengths = [len(sequence) for sequence in sequences]
    if max(lengths) > budget:
        raise ValueError(
            f"budget = {budget} is below the longest sequence, {max(lengths)} patches: raise it, "
            "or make the image smaller"
        )
    used: list[int] = []
    counts: list[int] = []
    starts, places = np.zeros(len(lengths), int), np.zeros((len(lengths), 2), np.int32)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, full in enumerate(used) if full + lengths[i] <= budget), len(used))
        if row == len(used):
            used.append(0)
            counts.append(0)
        starts[i], places[i] = used[row], (row, counts[row])
        used[row] += lengths[i]
        counts[row] += 1
    (side,) = sides
    packed = PackedRows(
        np.zeros((len(used), budget, side * side * 3), np.uint8),
        np.zeros((len(used), budget, 3), np.int32),
        np.full((len(used), budget), -1, np.int32),
        places,
    )
    for sequence, start, (row, segment) in zip(sequences, starts, places, strict=True):
        here = slice(start, start + len(sequence))
        packed.patches[row, here] = sequence.flat()
        packed.positions[row, here] = sequence.positions
        packed.segment_ids[row, here] = segment
    return packed


def _require_array(name: str, value: object, dtype: type) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        got = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"{name} must be a numpy array of {np.dtype(dtype).name}, got {got}")


def _require_sorted(positions_L3: np.ndarray) -> None:
    """Rows strictly increase in lexicographic order: they are sorted and free of duplicates."""
    before, after = positions_L3[:-1], positions_L3[1:]
    differs = before != after
    first = differs.argmax(axis=1)
    rows = np.arange(len(first))
    increasing = differs.any(axis=1) & (before[rows, first] < after[rows, first])
    if increasing.all():
        return
    row = int(np.argmin(increasing))
    what = "repeats" if not differs[row].any() else "comes after"
    raise ValueError(
        f"positions must be sorted by (t, h, w) without duplicates: row {row + 1} "
        f"{positions_L3[row + 1].tolist()} {what} row {row} {positions_L3[row].tolist()}"
    )
