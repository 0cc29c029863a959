"""`table:FILE`: a row, a pair; .jsonl or .parquet with texts and a picture, or the path of one."""

from __future__ import annotations

import collections
import contextlib
import json
import posixpath
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files import is_url, join, read_bytes
from ..sources import Item, clean_key
from .columns import Columns
from .source import Entry, PairError, PairSource, file_stamp, unique_keys

if TYPE_CHECKING:
    import pyarrow

_CACHED_GROUPS = 4


class TablePairs(PairSource):
    """The rows of a table.

    Args:
      path: the file, local; paths in it start at its folder.
      columns: which are what; the picture is bytes, a path or URL, or {bytes, path}.

    Raises:
      ValueError: the file is missing or no table, or names no picture.
    """

    def __init__(self, path: str, columns: Columns) -> None:
        super().__init__(f"table:{path}", columns)
        if not Path(path).is_file():
            raise ValueError(f"table {path} does not exist (a table has to be a local file)")
        self._path, self._folder = Path(path), posixpath.dirname(path)
        rows = _Parquet if path.endswith(".parquet") else _JsonLines
        self._rows = rows(path, columns.key)
        names = self._rows.names
        media = [*columns.image, *columns.video]
        if not any(name in names for name in media):
            raise ValueError(
                f"{path} has no column for pictures: looked for {', '.join(media)} among "
                f"{', '.join(sorted(names)) or 'none'}; name it, columns image=..."
            )
        stem = Path(path).stem
        self._keys = unique_keys(
            [
                clean_key(str(key)) if key not in (None, "") else f"{stem}-{number:08d}"
                for number, key in enumerate(self._rows.keys)
            ]
        )

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    @property
    def stamp(self) -> str:
        return file_stamp(self._path)

    def entry(self, index: int, columns: Sequence[str], media: bool = True) -> Entry:
        key = self._keys[index]
        wanted = (*columns, *self.columns.image) if media else columns
        row = self._row(index, wanted)
        image = self._image(key, row) if media else None
        return Entry(key, {name: row[name] for name in columns if name in row}, image)

    def video(self, index: int) -> Item:
        key = self._keys[index]
        row = self._row(index, self.columns.video)
        given = next((row[name] for name in self.columns.video if row.get(name)), None)
        if not isinstance(given, str):
            raise PairError(key, "dead", "names no video")
        path = join(self._folder, given)
        if not is_url(path) and not Path(path).exists():
            raise PairError(key, "dead", f"{path} does not exist")
        return Item(key, "video", path, given)

    def _row(self, index: int, columns: Sequence[str]) -> Mapping[str, Any]:
        try:
            return self._rows.row(index, columns)
        except ValueError as error:
            raise PairError(self._keys[index], "bad text", f"row {index}: {error}") from error

    def _image(self, key: str, row: Mapping[str, Any]) -> bytes:
        given = next((row[name] for name in self.columns.image if row.get(name)), None)
        if isinstance(given, Mapping):  # as Hugging Face's data sets store pictures
            given = given.get("bytes") or given.get("path")
        if isinstance(given, str):
            path = join(self._folder, given)
            try:
                given = read_bytes(path)
            except OSError as error:
                raise PairError(key, "dead", f"{path} cannot be read ({error})") from error
        if not isinstance(given, bytes) or not given:
            raise PairError(key, "dead", "there is no picture, or an empty one")
        return given


def open_rows(path: str, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """All rows of a table, of each the columns that it has.

    Args:
      path: a local .jsonl or .parquet.
      columns: which.

    Raises:
      ValueError: there is no such table, or a row is damaged.
    """
    if not Path(path).is_file():
        raise ValueError(f"table {path} does not exist (a table has to be a local file)")
    rows = (_Parquet if path.endswith(".parquet") else _JsonLines)(path, ())
    for index in range(len(rows.keys)):
        try:
            yield rows.row(index, columns)
        except ValueError as error:
            raise ValueError(f"{path}, row {index}: {error}") from error


class _JsonLines:
    """Rows of a .jsonl, found by the places of their lines."""

    def __init__(self, path: str, key_columns: Sequence[str]) -> None:
        self._path = path
        self.names: set[str] = set()
        self.keys: list[Any] = []
        places, place = [], 0
        with Path(path).open("rb") as file:
            for line in file:
                if line.strip():
                    places.append((place, len(line)))
                    row: Mapping[str, Any] = {}
                    # A damaged line is a pair that cannot be read, not the end of the table.
                    with contextlib.suppress(ValueError):
                        row = _parsed(line)
                    self.names |= row.keys()
                    self.keys.append(
                        next((row[n] for n in key_columns if row.get(n) not in (None, "")), None)
                    )
                place += len(line)
        self._places = np.array(places, np.int64).reshape(-1, 2)

    def row(self, index: int, columns: Sequence[str]) -> Mapping[str, Any]:
        place, size = self._places[index].tolist()
        with Path(self._path).open("rb") as file:
            file.seek(place)
            found = _parsed(file.read(size))
        return {name: found[name] for name in columns if name in found}


class _Parquet:
    """Rows of a .parquet; a few row groups are held."""

    def __init__(self, path: str, key_columns: Sequence[str]) -> None:
        try:
            from pyarrow import ArrowInvalid, parquet
        except ImportError as error:
            raise ValueError(f"{path} needs pyarrow: pip install pyarrow") from error
        self._path = path
        try:
            file = parquet.ParquetFile(path)
        except (ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} is no parquet file: {error}") from error
        self.names = set(file.schema_arrow.names)
        groups = range(file.metadata.num_row_groups)
        sizes = [file.metadata.row_group(number).num_rows for number in groups]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        key = next((name for name in key_columns if name in self.names), None)
        count = int(self._starts[-1])
        self.keys = file.read([key])[key].to_pylist() if key else [None] * count
        self._open()

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._groups: collections.OrderedDict[Any, pyarrow.Table] = collections.OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes get a copy that holds no rows."""
        return {n: v for n, v in self.__dict__.items() if n not in ("_lock", "_groups")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def row(self, index: int, columns: Sequence[str]) -> Mapping[str, Any]:
        names = tuple(sorted({name for name in columns if name in self.names}))
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        table = self._group(group, names)
        place = index - int(self._starts[group])
        return {name: table[name][place].as_py() for name in names}

    def _group(self, group: int, names: tuple[str, ...]) -> pyarrow.Table:
        with self._lock:
            if (group, names) not in self._groups:
                from pyarrow import parquet

                with parquet.ParquetFile(self._path) as file:
                    found = file.read_row_group(group, columns=list(names))
                self._groups[group, names] = found
                if len(self._groups) > _CACHED_GROUPS:
                    self._groups.popitem(last=False)
            self._groups.move_to_end((group, names))
            return self._groups[group, names]


def _parsed(line: bytes) -> Mapping[str, Any]:
    """A line of JSON; raises ValueError (also for bytes that are no UTF-8)."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a JSON object, not a {type(row).__name__}")
    return row
