"""Examples of a batch -> the arguments of the model's forward.

Shape suffixes: B examples, S tokens, V visuals, P side of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .examples import IGNORED, Example
from .visuals import Visual


def collate(
    examples: Sequence[Example], pad_id: int, left: bool = False
) -> dict[str, torch.Tensor | None]:
    """Examples as the arguments of the model's forward.

    Args:
      examples: one or more; their patches have one side, and so have their frames.
      pad_id: fills up shorter rows, masked.
      left: pad on the left, for generation.

    Returns:
      input_ids, attention_mask, labels, int64 [B, S]; patches uint8 [total, P*P*3], positions int64
      [total, 3], lengths int64 [V] and grids int64 [V, 2], all None in a batch without patches; and
      where there are frames, frames uint8 [total, S, S, 3] and frame_counts int64 [V].

    Raises:
      ValueError: no examples, or patches or frames of several sides.
    """
    if not examples:
        raise ValueError("collate needs at least one example")
    shape = (len(examples), max(map(len, examples)))
    ids_BS, labels_BS = np.full(shape, pad_id, np.int64), np.full(shape, IGNORED, np.int64)
    mask_BS = np.zeros(shape, np.int64)
    for row, example in enumerate(examples):
        place = slice(shape[1] - len(example), None) if left else slice(0, len(example))
        ids_BS[row, place] = example.input_ids
        labels_BS[row, place] = example.labels
        mask_BS[row, place] = 1
    visuals = [visual for example in examples for visual in example.visuals]
    arrays = {"input_ids": ids_BS, "attention_mask": mask_BS, "labels": labels_BS}
    seen = {**arrays, **_patches(visuals), **_frames(visuals)}
    return {name: a if a is None else torch.from_numpy(a) for name, a in seen.items()}


def _patches(visuals: Sequence[Visual]) -> dict[str, np.ndarray | None]:
    read = [visual for visual in visuals if len(visual)]
    sides = {visual.patch for visual in read}
    if len(sides) > 1:
        raise ValueError(f"visuals of a batch must have patches of one side, got {sorted(sides)}")
    if not read:
        return dict.fromkeys(("patches", "positions", "lengths", "grids"))
    return {
        "patches": np.concatenate([visual.flat() for visual in read]),
        "positions": np.concatenate([visual.positions for visual in read]).astype(np.int64),
        "lengths": np.array([len(visual) for visual in visuals]),
        "grids": np.array([visual.grid for visual in visuals]),
    }


def _frames(visuals: Sequence[Visual]) -> dict[str, np.ndarray | None]:
    shown = [visual.frames for visual in visuals if visual.frames is not None]
    if not shown:
        return {}
    sides = {frames.pixels.shape[1] for frames in shown}
    if len(sides) > 1:
        raise ValueError(f"frames of a batch must have one side, got {sorted(sides)}")
    counts = [0 if visual.frames is None else len(visual.frames) for visual in visuals]
    return {
        "frames": np.concatenate([frames.pixels for frames in shown]),
        "frame_counts": np.array(counts),
    }
