"""From a decoded clip to the patches that are kept. No file is touched here.

`choose` is the one place that decides on patches: pretraining records, LLaVA training data and
evaluation assets all call it.

Shape suffixes: M sampled frames, R and C patch rows and columns of the view, L patches kept, N
units (patches, or blocks of 2 x 2) of a frame.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..sequence import NUM_SLOTS, PatchSequence, slot_times
from .clip import Clip
from .config import require_choice
from .policies import choose_units, ranking

MODES = ("codec", "frames", "collage")

_SHORTEST_GROUP = 8  # samples of a group that ends by its news, as in LLaVA-OneVision-2
_MEAN_GROUP = 32  # samples after which a clip of even news ends a group


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """The patches that the codec mode keeps of a clip (of one group of a clip).

    Attributes:
      clip: the clip, or the part of it that is the group.
      thw_L3: int32, (index of the sample, patch row, patch column), sorted, without duplicates.
      score_L: float32, what each was valued at; -1 for padding.
      first_sample: index of the group's first sample in the whole clip; 0 without groups.
    """

    clip: Clip
    thw_L3: np.ndarray
    score_L: np.ndarray
    first_sample: int = 0

    def __len__(self) -> int:
        return len(self.thw_L3)

    @property
    def positions_L3(self) -> np.ndarray:
        """int32, (slot on the time axis 0..63, patch row, patch column)."""
        positions = self.thw_L3.copy()
        positions[:, 0] = slot_times(len(self.clip))[positions[:, 0]]
        return positions

    def patches(self) -> np.ndarray:
        """uint8 [L, P, P, 3], RGB."""
        return self.clip.patches(*self.thw_L3.T)

    def sequence(self) -> PatchSequence:
        """The selection as the encoder reads it."""
        return PatchSequence(self.patches(), self.positions_L3)


def choose(clip: Clip, budget: int, seed: int | None = None) -> Selection:
    """The codec mode: what `clip.config` values most, within a budget.

    Args:
      clip: the decoded clip, of at most 64 samples.
      budget: most patches to keep, at least those of one frame.
      seed: of the policy "random"; the others draw nothing.

    Returns:
      The selection. Equal clip and options give equal bytes.

    Raises:
      ValueError: a budget below one frame, an odd grid with block = 2, or the policy "groups".
    """
    if clip.config.policy == "groups":
        raise ValueError("policy = 'groups' gives several sequences: call choose_groups")
    return _choose(clip, budget, seed)


def choose_groups(clip: Clip, budget: int, seed: int | None = None) -> list[Selection]:
    """The codec mode for clips of any length: one selection per group of consecutive samples.

    Args:
      clip: the decoded clip, of any number of samples. With a policy other than "groups" it is one
        group.
      budget: most patches of each group, at least those of one frame.
      seed: of the policy "random".

    Returns:
      One selection per group, in order. Each has its first sample as the anchor, and slots of its
      own.

    Raises:
      ValueError: as `choose`.
    """
    if clip.config.policy != "groups":
        return [_choose(clip, budget, seed)]
    edges = group_edges(clip, budget)
    return [
        dataclasses.replace(_choose(clip.part(start, stop), budget, seed), first_sample=start)
        for start, stop in zip(edges, edges[1:], strict=False)
    ]


def group_edges(clip: Clip, budget: int) -> list[int]:
    """Where groups begin, and the end of the last one.

    With `policy_arg` a group has that many samples. Without it, it ends once its later frames hold
    enough news to fill its budget, news being a patch that would be chosen if the whole clip shared
    the budgets of groups of 32 samples; after 8 samples at the earliest, 64 at the latest. Busy
    stretches get short groups, quiet ones long groups.

    Args:
      clip: the decoded clip.
      budget: patches of each group.

    Returns:
      Indices of samples, from 0 to len(clip).
    """
    samples, length = len(clip), clip.config.policy_arg
    scores = clip.scores_MRC  # of the whole clip, which its parts then share
    if length is not None:
        return [*range(0, samples, length), samples]
    room = max(budget - int(clip.exists_RC.sum()), 1)
    competing = np.where(clip.exists_RC, scores, -np.inf).reshape(samples, -1)
    wanted = max(1, round(samples / _MEAN_GROUP)) * room
    best = ranking(competing, None)[: min(wanted, competing.size)]
    news_M = (competing >= competing.ravel()[best[-1]]).sum(axis=1)
    edges, held = [0], 0
    for sample in range(1, samples):
        grown = sample - edges[-1]
        full = held >= room and grown >= _SHORTEST_GROUP
        # A short rest joins the last group rather than stand alone.
        if (full and samples - sample >= _SHORTEST_GROUP) or grown == NUM_SLOTS:
            edges.append(sample)
            held = 0
        else:
            held += int(news_M[sample])
    return [*edges, samples]


def select(
    clip: Clip,
    mode: str = "codec",
    budget: int = 2048,
    seed: int | None = None,
    phase: float | None = None,
) -> list[PatchSequence]:
    """A clip as patch sequences, in one of three modes.

    Args:
      clip: the decoded clip.
      mode: "codec": see `choose`; "frames": as many whole frames as the budget holds, one from each
        of equal bins, at their own times; "collage": the same frames stacked into one tall image.
      budget: most patches to keep, at least those of one frame.
      seed: "frames" and "collage" draw the frame at random within each bin, None takes that at
        `phase`; the codec mode passes it to its policy.
      phase: of "frames" and "collage", a share of each bin; None is the middle.

    Returns:
      One sequence; of the codec mode with the policy "groups" one per group.

    Raises:
      ValueError: an unknown mode, or as `choose`.
    """
    require_choice("mode", mode, MODES)
    if mode == "codec":
        return [selection.sequence() for selection in choose_groups(clip, budget, seed)]
    if len(clip) > NUM_SLOTS:
        raise ValueError(
            f"mode = {mode!r} takes at most {NUM_SLOTS} samples, the clip has {len(clip)}"
        )
    size = clip.rows * clip.columns
    check_budget(budget, size)
    frames = choose_frames(len(clip), budget // size, seed, 0.5 if phase is None else phase)
    h, w = np.divmod(np.tile(np.arange(size), len(frames)), clip.columns)
    patches = clip.patches(np.repeat(frames, size), h, w)
    if mode == "frames":
        t = slot_times(len(clip))[np.repeat(frames, size)]
    else:
        t = np.zeros_like(h)
        h = h + np.repeat(np.arange(len(frames)), size) * clip.rows
    return [PatchSequence(patches, np.stack([t, h, w], axis=1).astype(np.int32))]


def check_budget(budget: int, frame: int) -> None:
    """Raises ValueError for a budget below the patches of one frame."""
    if budget < frame:
        raise ValueError(f"budget = {budget} is below one frame of {frame} patches")


def choose_frames(num_samples: int, count: int, seed: int | None, phase: float = 0.5) -> np.ndarray:
    """One of the samples from each of equal bins.

    Args:
      num_samples: sampled frames M.
      count: frames wanted; at most M come out.
      seed: None for a fixed place in each bin, else the seed of the draw within it.
      phase: that place, 0 <= phase < 1 of the bin's length.

    Returns:
      int64 [min(count, M)], strictly increasing.
    """
    count = min(count, num_samples)
    edges = np.arange(count + 1) * num_samples // count
    low, high = edges[:-1], edges[1:]
    if seed is None:
        return low + ((high - low) * phase).astype(int)
    return np.random.default_rng(seed).integers(low, high)


def _choose(clip: Clip, budget: int, seed: int | None) -> Selection:
    config, exists_RC = clip.config, clip.exists_RC
    block = config.block
    check_budget(budget, int(exists_RC.sum()))
    if clip.rows % block or clip.columns % block:
        raise ValueError(
            f"block = {block} does not divide the view of {clip.rows} x {clip.columns} patches: "
            "choose another size"
        )
    if budget >= len(clip) * exists_RC.sum():
        chosen_MRC = np.broadcast_to(exists_RC, (len(clip), clip.rows, clip.columns))
    else:
        chosen_MRC = np.zeros((len(clip), clip.rows, clip.columns), bool)
        if config.first_frame == "whole":
            chosen_MRC[0] = exists_RC
        room = (budget - int(chosen_MRC.sum())) // block**2
        competing = np.where(exists_RC & ~chosen_MRC, clip.scores_MRC, -np.inf)
        chosen_MRC |= _best_units(competing, room, clip, seed)
    thw_L3 = np.argwhere(chosen_MRC).astype(np.int32)
    return Selection(clip, thw_L3, clip.scores_MRC[tuple(thw_L3.T)])


def _best_units(competing_MRC: np.ndarray, count: int, clip: Clip, seed: int | None) -> np.ndarray:
    """bool [M, R, C]: the chosen patches. A block is as good as the mean of its patches."""
    block = clip.config.block
    frames, rows, columns = competing_MRC.shape
    units = competing_MRC.reshape(frames, rows // block, block, columns // block, block)
    units_MN = units.mean(axis=(2, 4)).reshape(frames, -1) if block > 1 else competing_MRC
    units_MN = units_MN.reshape(frames, -1)
    first = 0 if clip.config.first_frame == "ranked" else 1
    chosen = choose_units(units_MN[first:], count, clip.config, seed)
    flags = np.zeros(units_MN.shape, bool)
    flags.ravel()[chosen + first * units_MN.shape[1]] = True
    flags = flags.reshape(frames, rows // block, columns // block)
    return flags.repeat(block, axis=1).repeat(block, axis=2)
