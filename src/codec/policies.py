"""How a budget of patches is shared out over time: policies by name.

Shape suffixes: M frames that compete, N units (patches, or blocks of them) of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .config import DEFAULT_BUCKETS, SelectionConfig


def choose_units(
    score_MN: np.ndarray, count: int, config: SelectionConfig, seed: int | None
) -> np.ndarray:
    """Indices into the flattened scores of the units that a policy keeps.

    Args:
      score_MN: float32; -inf marks units that do not exist.
      count: units wanted.
      config: policy, policy_arg and frame_cap.
      seed: of the policy "random"; None counts as 0.

    Returns:
      int64 [min(count, existing units)], sorted, that is by (t, h, w).
    """
    count = min(count, int(np.isfinite(score_MN).sum()))
    return np.sort(RANKINGS[config.policy](score_MN, count, config, seed)[:count])


def ranking(score_MN: np.ndarray, frame_cap: float | None) -> np.ndarray:
    """All flat indices, best first, ties in reading order.

    Args:
      score_MN: float32.
      frame_cap: largest share of one frame, or None. Units beyond it come after all others.

    Returns:
      int64 [M * N].
    """
    flat = -score_MN.ravel()
    if frame_cap is None:
        return np.argsort(flat, kind="stable")
    rank_MN = np.argsort(np.argsort(-score_MN, axis=1, kind="stable"), axis=1, kind="stable")
    beyond = rank_MN.ravel() >= math.ceil(frame_cap * score_MN.shape[1])
    # What does not exist stays behind even those beyond the cap.
    return np.lexsort((flat, beyond, np.isinf(flat)))


def _top_k(
    score_MN: np.ndarray, count: int, config: SelectionConfig, seed: int | None
) -> np.ndarray:
    return ranking(score_MN, config.frame_cap)


def _time_bucket(
    score_MN: np.ndarray, count: int, config: SelectionConfig, seed: int | None
) -> np.ndarray:
    """The best of each stretch of time up to an even share, then the best of what is left."""
    frames, units = score_MN.shape
    order = ranking(score_MN, config.frame_cap)
    buckets = min(config.policy_arg or DEFAULT_BUCKETS, max(frames, 1))
    bucket = (order // units) * buckets // max(frames, 1)
    # Place of each unit in its own bucket, best first.
    place = np.empty(len(order), np.int64)
    for b in range(buckets):
        mine = np.flatnonzero(bucket == b)
        place[mine] = np.arange(len(mine))
    lacks = np.isinf(score_MN.ravel()[order])
    return order[np.lexsort((np.arange(len(order)), place >= count // buckets, lacks))]


def _random(
    score_MN: np.ndarray, count: int, config: SelectionConfig, seed: int | None
) -> np.ndarray:
    draw = np.random.default_rng(seed or 0).random(score_MN.shape).astype(np.float32)
    return ranking(np.where(np.isfinite(score_MN), draw, -np.inf), config.frame_cap)


Ranking = Callable[[np.ndarray, int, SelectionConfig, "int | None"], np.ndarray]

RANKINGS: dict[str, Ranking] = {
    "top_k": _top_k,
    "groups": _top_k,  # within a group
    "time_bucket": _time_bucket,
    "random": _random,
}
"""Policy -> function of (scores [M, N], count, config, seed) -> flat indices, best first."""
