"""From a decoded clip to a patch sequence, in one of three modes. No file is touched here.

Shape suffixes: M sampled frames, N patches of a frame, T = M - 1 later frames, L patches kept.
"""

from __future__ import annotations

import math

import numpy as np

from ..sequence import PatchSequence, slot_times
from .clip import Clip
from .config import PRESETS, SelectionConfig
from .saliency import saliency

MODES = ("codec", "frames", "collage")


def select(
    clip: Clip,
    mode: str = "codec",
    budget: int = 2048,
    seed: int | None = None,
    config: SelectionConfig = PRESETS["default"],
) -> PatchSequence:
    """Chooses at most `budget` patches of a clip.

    Args:
      clip: the decoded clip.
      mode: "codec": the first frame whole and, of all others, the patches with the highest score;
        "frames": as many whole frames as the budget holds, one from each of equal bins, at their
        own times; "collage": the same frames stacked into one tall image.
      budget: most patches to keep, at least those of one frame.
      seed: "frames" and "collage" draw the frame at random within each bin; None takes the middle.
        The codec mode draws nothing and ignores it.
      config: what the codec mode values; the other modes ignore it.

    Returns:
      The patch sequence. Equal clip and options give equal bytes.

    Raises:
      ValueError: an unknown mode or a budget below one frame.
    """
    check_selection(mode, budget, clip.grid)
    if mode == "codec":
        t, h, w = _codec_patches(clip, budget, config)
        slots = slot_times(len(clip))[t]
        return PatchSequence(
            clip.patches(t, h, w), np.stack([slots, h, w], axis=1).astype(np.int32)
        )
    frames = choose_frames(len(clip), budget // clip.grid**2, seed)
    t, h, w = _grid_indices(frames, clip.grid)
    patches = clip.patches(t, h, w)
    if mode == "frames":
        t = slot_times(len(clip))[t]
    else:
        h = np.repeat(np.arange(len(frames)), clip.grid**2) * clip.grid + h
        t = np.zeros_like(h)
    return PatchSequence(patches, np.stack([t, h, w], axis=1).astype(np.int32))


def check_selection(mode: str, budget: int, grid: int) -> None:
    """Raises ValueError for an unknown mode or a budget below one frame of grid * grid patches."""
    if mode not in MODES:
        raise ValueError(f"mode = {mode!r} must be one of {', '.join(MODES)}")
    if budget < grid**2:
        raise ValueError(
            f"budget = {budget} is below one frame of {grid} x {grid} = {grid**2} patches"
        )


def choose_frames(num_samples: int, count: int, seed: int | None) -> np.ndarray:
    """One of the samples from each of equal bins.

    Args:
      num_samples: sampled frames M.
      count: frames wanted; at most M come out.
      seed: None for the middle of each bin, else the seed of the draw within it.

    Returns:
      int64 [min(count, M)], strictly increasing.
    """
    count = min(count, num_samples)
    edges = np.arange(count + 1) * num_samples // count
    low, high = edges[:-1], edges[1:]
    if seed is None:
        return (low + high) // 2
    return np.random.default_rng(seed).integers(low, high)


def top_patches(score_TN: np.ndarray, count: int, frame_cap: float | None) -> np.ndarray:
    """Indices into the flattened scores of the `count` best patches, ties in reading order.

    Args:
      score_TN: float32.
      count: patches wanted; at most T * N come out.
      frame_cap: largest share of one frame, or None. Patches beyond it come after all others.

    Returns:
      int64 [min(count, T * N)], sorted, that is by (t, h, w).
    """
    flat = -score_TN.ravel()
    if frame_cap is None:
        order = np.argsort(flat, kind="stable")
    else:
        rank_TN = np.argsort(np.argsort(-score_TN, axis=1, kind="stable"), axis=1, kind="stable")
        beyond = rank_TN.ravel() >= math.ceil(frame_cap * score_TN.shape[1])
        order = np.lexsort((flat, beyond))
    return np.sort(order[:count])


def _codec_patches(
    clip: Clip, budget: int, config: SelectionConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    frame = clip.grid**2
    count = budget - frame
    if budget >= len(clip) * frame:
        chosen = np.arange((len(clip) - 1) * frame)
    else:
        chosen = top_patches(saliency(clip.motion, clip.grid, config), count, config.frame_cap)
    index = np.concatenate([np.arange(frame), chosen + frame])
    t, place = np.divmod(index, frame)
    h, w = np.divmod(place, clip.grid)
    return t, h, w


def _grid_indices(frames: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(t, h, w) of all patches of the frames, in reading order."""
    h, w = np.divmod(np.arange(grid**2), grid)
    return np.repeat(frames, grid**2), np.tile(h, len(frames)), np.tile(w, len(frames))
