"""What a labelled data set lists and what of it is there: examples, and lines that are of no use.

The readers in annotations.py fill it from the files of each data set.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..data.annotation_files import Files
from ..data.sources import Item, clean_key

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
