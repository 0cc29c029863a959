"""The patch sequence: the one form in which every image and video reaches the model.

Shape suffixes: L patches in the sequence, P patch side in pixels, 3 either RGB or (t, h, w).
"""

from __future__ import annotations

import dataclasses

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
