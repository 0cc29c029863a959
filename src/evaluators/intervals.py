"""Intervals around what a finite test measured; numpy alone, for every part of the package."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    count: int,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic over test examples (Efron and Tibshirani 1993, ch. 13).

    Two runs on the same examples are compared by a statistic of both, which pairs them.

    Args:
      statistic: numbers of examples, int [count] drawn with replacement -> value.
      count: number of examples.
      draws: number of resamples.
      level: of the interval.
      seed: of the draws; equal seeds draw equal examples.

    Returns:
      Lower and upper end.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, count, count)) for _ in range(draws)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
