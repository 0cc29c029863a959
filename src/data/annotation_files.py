"""Annotation files of data sets (CSV, JSON, text), and where the files lie that they list.

What a file holds is the matter of its readers: evaluators/annotations.py for labelled videos,
pairs/layouts.py for captioned images.
"""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..codec.image_folder import ImageFolder, is_image_folder
from .sources import EXTENSIONS


class Files:
    """Finds the files of examples below a folder; each folder is listed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[str, dict[str, str]] = {}

    def find(self, candidates: Iterable[str]) -> tuple[str, int] | None:
        """The first candidate that exists.

        Args:
          candidates: paths below the root, without the extension of a video file or with it; a
            folder of numbered images with a stated rate is a video, too.

        Returns:
          Its path below the root, and its bytes; None if there is none, or none with content.
        """
        for candidate in candidates:
            folder, name = posixpath.split(candidate)
            known = self._listing(folder).get(name)
            if known is None:
                continue
            relative = posixpath.join(folder, known)
            path = self.root / relative
            if is_image_folder(path):
                return relative, sum(image.stat().st_size for image in ImageFolder(path).paths)
            if path.is_file() and path.stat().st_size:
                return relative, path.stat().st_size
        return None

    def _listing(self, folder: str) -> Mapping[str, str]:
        """Names in a folder by themselves and, of videos, also without their extension."""
        if folder not in self._listings:
            place = self.root / folder
            names = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
            found = {}
            for name in names:
                stem, extension = posixpath.splitext(name)
                if EXTENSIONS.get(extension.lower()) == "video":
                    found.setdefault(stem, name)
            self._listings[folder] = found | {name: name for name in names}
        return self._listings[folder]


def annotation_file(root: Path, *names: str, page: str = "docs/probe_data.md") -> Path:
    """The first of these files that is there, in the root or in a folder of the root.

    Args:
      root: folder of the download.
      names: of the file.
      page: that shows the layout, for the message.

    Raises:
      ValueError: there is none, or several folders hold one of that name.
    """
    for name in names:
        if (root / name).is_file():
            return root / name
        found = sorted(root.glob(f"*/{name}"))
        if len(found) > 1:
            raise ValueError(
                f"annotation file {name} is there more than once, {found[0]} and {found[1]}: leave "
                f"one of them in {root}"
            )
        if found:
            return found[0]
    raise ValueError(
        f"annotation file {' or '.join(names)} is missing: it belongs into {root} or into a folder "
        f"in it, see {page}"
    )


def csv_rows(
    path: Path, columns: Sequence[str], *, header: bool = True, delimiter: str = ","
) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a table as (name of the line, fields); a field that a row lacks is not among them.

    Args:
      path: the file.
      columns: that the header must name or, without a header, the columns in order.
      header: whether the first line names the columns.
      delimiter: between fields.

    Raises:
      ValueError: the file is no table, or its header lacks a column.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, None if header else columns, delimiter=delimiter)
        missing = set(columns) - set(reader.fieldnames or ())
        if missing:
            raise ValueError(
                f"{path}: the first line lacks the columns {', '.join(sorted(missing))}; it is "
                f"{delimiter.join(reader.fieldnames or ())!r}"
            )
        try:
            for row in reader:
                fields = {k: v.strip() for k, v in row.items() if k is not None and v is not None}
                yield f"{path.name}, line {reader.line_num}", fields
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, after line {reader.line_num}: {error}") from error


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines of a text file that are not empty, as (name of the line, its text)."""
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if text.strip():
            yield f"{path.name}, line {number}", text.strip()


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file.

    Raises:
      ValueError: it is no JSON, or its outermost value is no list or object as expected.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: holds a {type(value).__name__}, expected a {kind.__name__}")
    return value
