"""The order in which examples come up: which record set is at its turn, and which of its records.

Any place of the endless stream can be asked for by itself, so that the state of a loader stays one
integer.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from fractions import Fraction

import grain
import numpy as np
from grain.experimental import WindowShuffleMapDataset


class Mixture(grain.transforms.DatasetSelectionMap):
    """Which set gives the example at each place of the stream, spread as evenly as can be.

    Grain's own mixing rounds the weights to multiples of a hundredth of the smallest one; here they
    are exact, and the same numbers serve as counters.

    Args:
      weights: share of each set, up to a common factor.

    Raises:
      ValueError: a weight is not a positive number.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(f"weights = {list(weights)} must be positive numbers")
        exact = [Fraction(weight) for weight in weights]
        scale = math.lcm(*(weight.denominator for weight in exact))
        self._weights = [int(weight * scale) for weight in exact]

    def counts(self, examples: int) -> list[int]:
        """Examples of each set among the first `examples` of the stream.

        Each set takes its share of what the sets before it leave, rounded up; so one of the counts
        grows by one from place to place, and each stays within its number of sets of its share.
        """
        found, left, weight_left = [], examples, sum(self._weights)
        for weight in self._weights:
            rest = left * (weight_left - weight) // weight_left
            found.append(left - rest)
            left, weight_left = rest, weight_left - weight
        return found

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, place: int) -> tuple[int, int]:
        """(number of the set, place in that set's own stream)."""
        before, after = self.counts(place), self.counts(place + 1)
        number = next(n for n, count in enumerate(before) if after[n] > count)
        return number, before[number]


def stream(
    ranges: Sequence[range], mixture: Mixture, seed: int, shuffle: bool, window: int = 0
) -> grain.MapDataset[int]:
    """The endless stream of record numbers.

    Args:
      ranges: per set the numbers of its records.
      mixture: how the sets alternate.
      seed: of the order, another one in each epoch of each set.
      shuffle: False keeps the order of the records within each set.
      window: records in a row among which the order is drawn; 0: all of a set.

    Returns:
      A seeded data set; what is drawn after it sees the place in the stream, so each epoch draws
      anew.
    """
    # Sets of equal size, say two modes of the same videos, must not come in the same order.
    seeds = [seed, *np.random.SeedSequence(seed).generate_state(len(ranges) - 1).tolist()]
    streams = []
    for numbers, own_seed in zip(ranges, seeds, strict=True):
        own = grain.MapDataset.range(numbers.start, numbers.stop).seed(own_seed)
        if not shuffle:
            streams.append(own.repeat())
        elif not 0 < window < len(numbers):
            streams.append(own.shuffle().repeat())
        else:
            # Grain adds the window's number to the seed: far apart, and below its 32 bits.
            start = int(np.random.SeedSequence(own_seed).generate_state(1)[0]) >> 1
            shuffled = WindowShuffleMapDataset(own.repeat(), window_size=window, seed=start)
            streams.append(shuffled)
    if len(streams) == 1:
        return streams[0]
    return grain.MapDataset.select_from_datasets(streams, mixture)
