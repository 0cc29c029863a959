"""Captions that are published apart from their pictures, joined to them by key or by SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files import PathOrUrl
from ..sources import clean_key
from .columns import Columns
from .members import matching
from .source import Entry, file_stamp
from .table import open_rows

JOINS = ("key", "sha256")


class Captions:
    """Rows of a table by what joins them; all in memory.

    Args:
      rows: fields by join value.
      join: one of JOINS.

    Attributes:
      needs: columns of a pair that are looked at for the join.
      stamp: changes with the table.
    """

    def __init__(self, rows: Mapping[str, Mapping[str, Any]], join: str, stamp: str) -> None:
        self._rows, self._join, self.stamp = rows, join, f"{join} {stamp}"
        self.needs = (join,)

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, entry: Entry) -> Mapping[str, Any]:
        """The columns that are there for a pair."""
        value = entry.fields.get(self._join)
        if isinstance(value, bytes):
            value = value.decode("ascii", "replace")
        if value is None:
            if self._join == "key":
                # Keys of a tar's pairs are SHARD/NAME.
                value = entry.key if entry.key in self._rows else entry.key.rpartition("/")[2]
            elif entry.image is not None:
                value = hashlib.sha256(entry.image).hexdigest()
        return self._rows.get(_joined(value, self._join), {})


def _joined(value: Any, join: str) -> str:
    """What is compared: keys as those of records, hashes in lower case."""
    text = str(value).strip()
    return clean_key(text) if join == "key" else text.lower()


def open_captions(path: PathOrUrl, join: str, columns: Columns) -> Captions:
    """Reads a table of captions.

    Args:
      path: local .jsonl or .parquet (`*`: several) with the column that joins and those of the
        texts.
      join: one of JOINS.
      columns: which of its columns are texts.

    Raises:
      ValueError: there is no such table or column, or a join value is there twice.
    """
    if join not in JOINS:
        raise ValueError(f"join = {join!r} must be one of {', '.join(JOINS)}")
    names = (join, *columns.text_columns)
    rows: dict[str, Mapping[str, Any]] = {}
    files = matching(str(path)) or [str(path)]
    for row in (row for file in files for row in open_rows(file, names)):
        value = row.get(join)
        if value is None:
            raise ValueError(f"captions {path}: a row has no {join}")
        fields = {name: row[name] for name in columns.text_columns if row.get(name) is not None}
        if rows.setdefault(_joined(value, join), fields) != fields:
            raise ValueError(
                f"captions {path}: {join} = {value!r} is there twice, with other texts"
            )
    if not rows or not any(rows.values()):
        raise ValueError(
            f"captions {path} holds none of the columns {', '.join(columns.text_columns)}"
        )
    return Captions(rows, join, " ".join(file_stamp(Path(file)) for file in files))
