"""What a labelled data set lists and what of it is there: examples, and lines that are of no use.

The readers in annotations.py fill it from the files of each data set.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..codec.image_folder import ImageFolder, is_image_folder
from ..data.sources import EXTENSIONS, Item, clean_key

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Example:
    """One thing to classify.

    Attributes:
      item: the file, or the segment of it, as packing takes it; of size 0 if it is not there.
      labels: numbers of its classes; one, or any number where the metric is for several.
    """

    item: Item
    labels: tuple[int, ...]

    @property
    def found(self) -> bool:
        return self.item.size > 0


class Listing(NamedTuple):
    """All that a data set's annotation files say.

    Attributes:
      classes: names by number; None where the files name none.
      train, test: the splits.
    """

    classes: list[str] | None
    train: Split
    test: Split


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


class Split:
    """The examples of one split, collected line by line.

    Args:
      files: where videos are looked for.
      num_classes: labels lie below it.

    Attributes:
      num_classes: as given.
      examples: in the order of the lines.
      unreadable: what is wrong with each line that gave no example.
    """

    def __init__(self, files: Files, num_classes: int) -> None:
        self._files, self.num_classes = files, num_classes
        self._names: set[str] = set()
        self._keys: set[str] = set()
        self.examples: list[Example] = []
        self.unreadable: list[str] = []

    @contextlib.contextmanager
    def line(self, where: str) -> Iterator[None]:
        """Notes what is wrong with a line, named `where`, and goes on after it."""
        try:
            yield
        except KeyError as error:
            self.unreadable.append(f"{where}: field {error} is missing")
        except TypeError:
            self.unreadable.append(f"{where}: fields of another type than expected")
        except ValueError as error:
            self.unreadable.append(f"{where}: {error}")

    def add(
        self,
        name: str,
        candidates: Sequence[str],
        labels: Iterable[int],
        start: float | None = None,
        end: float | None = None,
    ) -> None:
        """Adds an example.

        Args:
          name: its name in the annotation file, unique in the split.
          candidates: where its file may lie, as for `Files.find`; a missing file is called by the
            first.
          labels: its classes.
          start: seconds at which it begins, None for the beginning of the file.
          end: seconds at which it ends.

        Raises:
          ValueError: a label out of range, an empty segment, or a name that was used before.
        """
        if start is not None and end is not None and not start < end:
            raise ValueError(f"segment from {start:g} to {end:g} seconds is empty")
        place, size = self._files.find(candidates) or (candidates[0], 0)
        path = str(self._files.root / place)
        self.add_item(
            Item(name, "video", path, place, start=start, end=end, size=size), tuple(labels)
        )

    def add_item(self, item: Item, labels: tuple[int, ...]) -> None:
        """Adds an example whose file is known; its key is its name in the annotation file.

        Raises:
          ValueError: a label out of range, or a name that was used before.
        """
        for label in labels:
            if not 0 <= label < self.num_classes:
                raise ValueError(f"label {label} lies outside 0..{self.num_classes - 1}")
        if item.key in self._names:
            raise ValueError(f"example {item.key!r} occurs twice in this split")
        self._names.add(item.key)
        key = clean_key(item.key)
        while key in self._keys:  # two names that differ in signs which keys do not hold
            key += "~2"
        self._keys.add(key)
        self.examples.append(Example(dataclasses.replace(item, key=key), labels))

    def require_one_label(self) -> None:
        """Takes out the examples that have no label or several, and notes them."""
        for example in self.examples:
            if len(example.labels) != 1:
                self.unreadable.append(
                    f"{example.item.key}: {len(example.labels)} labels where one is expected"
                )
        self.examples = [example for example in self.examples if len(example.labels) == 1]


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


def number(text: str | float, what: str, kind: type = int) -> Any:
    """Text as an integer or a float; raises ValueError with the name of the field."""
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{what} = {text!r} is no {kind.__name__}") from None


def class_number(numbers: Mapping[str, int], name: str) -> int:
    """Number of a class; raises ValueError for one that is not known."""
    if name not in numbers:
        raise ValueError(f"class {name!r} is none of the {len(numbers)} known ones")
    return numbers[name]


def check_classes(names: Sequence[str], num_classes: int, source: str) -> list[str]:
    """The names; raises ValueError unless there are as many as the data set has classes."""
    if len(names) != num_classes or len(set(names)) != num_classes:
        few = ", ".join(names[:_SHOWN])
        raise ValueError(
            f"{source} names {len(set(names))} different classes ({few}, ...), expected "
            f"{num_classes}: it belongs to another version of the data set, or is not complete"
        )
    return list(names)
