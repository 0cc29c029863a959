"""The rows of a recipe, held in little memory. Torch is not needed here."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from ...codec.llava.recipe import Entry, Folders, data_root, read_recipe
from ...codec.llava.rows import RowError, iter_rows
from .row_visuals import RowShape, row_shape


class MixtureRow(NamedTuple):
    """A row and where it comes from.

    Attributes:
      row: the row; a RowError in place of one that is no JSON object.
      source: its file as the recipe names it, its number and id, for messages.
      folders: what its paths are relative to.
    """

    row: dict[str, Any] | RowError
    source: str
    folders: Folders


class Mixture:
    """Rows of several files, some of them several times in an epoch.

    They are kept as one block of JSON text: a million parsed rows would take many times as much,
    and every worker process gets a copy.

    Args:
      entries: of a recipe.
      root: absolute folder or URL of the data, which the entries' paths are relative to.
      seed: of the strategy "random".

    Raises:
      ValueError: a file holds no rows, no JSON, or fewer rows than its strategy asks for.
      OSError: a file cannot be read.
    """

    def __init__(self, entries: list[Entry], root: str, seed: int = 0) -> None:
        self.entries = tuple(entries)
        self.folders = tuple(entry.folders(root) for entry in entries)
        self._broken: dict[int, str] = {}
        texts, ends, shapes = bytearray(), [0], []
        owners, numbers, examples = [], [], []
        for owner, entry in enumerate(entries):
            path = entry.file(root)
            rows = [_store(row) for _, row in iter_rows(path)]
            if not rows:
                raise ValueError(f"{path} holds no rows")
            try:
                taken = entry.strategy.take(len(rows), seed, entry.json_path).tolist()
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            first = len(shapes)
            for number in taken:
                stored = rows[number]
                if stored.reason is not None:
                    self._broken[len(shapes)] = stored.reason
                texts += stored.text
                ends.append(len(texts))
                shapes.append(stored.shape)
            owners += [owner] * len(taken)
            numbers += taken
            examples.append(np.repeat(np.arange(first, len(shapes)), entry.repeat))
        self._texts = np.frombuffer(bytes(texts), np.uint8)
        self._ends = np.array(ends, np.int64)
        self._shapes = np.array(shapes, np.int32)
        self._owners = np.array(owners, np.int32)
        self._numbers = np.array(numbers, np.int64)
        self._examples = np.concatenate(examples)

    def __len__(self) -> int:
        """Examples of an epoch, repeated ones counted."""
        return len(self._examples)

    def __getitem__(self, index: int) -> MixtureRow:
        place = int(self._examples[index])
        owner = int(self._owners[place])
        source = f"{self.entries[owner].json_path} row {self._numbers[place]}"
        if place in self._broken:
            return MixtureRow(RowError(self._broken[place]), source, self.folders[owner])
        text = self._texts[self._ends[place] : self._ends[place + 1]].tobytes()
        row = json.loads(text)
        return MixtureRow(row, f"{source} (id {row.get('id')})", self.folders[owner])

    @property
    def shapes(self) -> RowShape:
        """Of all examples: int32 arrays, one number per example."""
        return RowShape(*self._shapes[self._examples].T)


def load_mixture(path: str, root: str | None = None, seed: int = 0) -> Mixture:
    """Reads a recipe and all rows that it names.

    Args:
      path: the recipe, see `codec.llava.recipe`.
      root: folder or URL of the data; None: the folder of the recipe.
      seed: of the strategy "random".

    Raises:
      ValueError, OSError: the recipe or a file of it is unusable.
    """
    return Mixture(read_recipe(path), data_root(path, root), seed)


class _Stored(NamedTuple):
    text: bytes
    shape: RowShape
    reason: str | None = None


def _store(row: dict[str, Any] | RowError) -> _Stored:
    """A row that is unusable is kept as such: it is a failure when its turn comes."""
    try:
        if isinstance(row, RowError):
            raise row
        return _Stored(json.dumps(row).encode(), row_shape(row))
    except RowError as error:
        return _Stored(b"", RowShape(0, 0, 0, 0, 0, 0), str(error))
