"""Several sources as one: the files of a table that comes in parts."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

from ..sources import Item
from .source import Entry, PairError, PairSource, unique_keys


class SeveralPairs(PairSource):
    """The pairs of several sources, counted through.

    Args:
      name: what messages call it.
      parts: at least one, all of the same columns.
    """

    def __init__(self, name: str, parts: Sequence[PairSource]) -> None:
        super().__init__(name, parts[0].columns)
        self._parts = list(parts)
        self._ends = list(itertools.accumulate(len(part) for part in parts))
        self._keys = unique_keys([key for part in parts for key in part.keys])

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    @property
    def stamp(self) -> str:
        return hashlib.sha256("\n".join(part.stamp for part in self._parts).encode()).hexdigest()

    def entry(self, index: int, columns: Sequence[str], media: bool = True) -> Entry:
        part, place = self._find(index)
        try:
            found = part.entry(place, columns, media)
        except PairError as error:
            raise PairError(self._keys[index], error.kind, error.reason) from error
        return dataclasses.replace(found, key=self._keys[index])

    def video(self, index: int) -> Item:
        part, place = self._find(index)
        return dataclasses.replace(part.video(place), key=self._keys[index])

    def _find(self, index: int) -> tuple[PairSource, int]:
        number = bisect.bisect_right(self._ends, index)
        return self._parts[number], index - (self._ends[number - 1] if number else 0)
