"""One record -> one row of a batch: what the loader's workers do.

A pool counts the records of several record sets through, one set after the other.

Shape suffixes: L token budget, M labels drawn, N labels stored.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..sequence import PatchSequence
from .augment import AugmentConfig, flip_sequence
from .labels import Labels, load_labels
from .pictures import see_picture
from .record import PICTURE
from .records import RecordError, RecordSet

Batch = dict[str, np.ndarray]

NO_AUGMENT = AugmentConfig()


class Part(Protocol):
    """The rows of one source of a pool."""

    def __len__(self) -> int:
        """Number of its records."""
        ...

    def draw(self, index: int, rng: np.random.Generator) -> Batch:
        """Record `index` as a row, augmented; of weight 0 if it cannot be read."""
        ...

    def check(self, index: int) -> None:
        """Raises RecordError, with the reason, if record `index` cannot be read."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """The rows of one record set; travels to worker processes.

    Attributes:
      record_set: where the records come from.
      budget: L.
      labels: int32 [records, N], or None: all labels are -1.
      labels_drawn: M.
      image_size: side in pixels of the view of pictures.
      augment: what is drawn anew for each example.
    """

    record_set: RecordSet
    budget: int
    labels: np.ndarray | None
    labels_drawn: int
    image_size: int
    augment: AugmentConfig

    def __len__(self) -> int:
        return len(self.record_set)

    def check(self, index: int) -> None:
        """Raises RecordError, with the reason, if record `index` cannot be read."""
        self._check(index, self._sequence(index, None))

    def draw(self, index: int, rng: np.random.Generator) -> Batch:
        """Record `index`, augmented, with M of its labels."""
        return self.at(index, self._draw_columns(index, rng), rng)

    def at(
        self, index: int, columns_M: np.ndarray, rng: np.random.Generator | None = None
    ) -> Batch:
        """Record `index` with the labels of these columns; weight 0 if it cannot be read.

        With a generator it is augmented.
        """
        try:
            sequence = self._sequence(index, rng)
            self._check(index, sequence)
        except RecordError:
            return self.empty(index)
        row = self.empty(index)
        length = len(sequence)
        row["patches"][:length] = sequence.flat()
        row["positions"][:length] = sequence.positions
        row["length"] = np.int32(length)
        row["weight"] = np.float32(1)
        if self.labels is not None:
            row["labels"] = self.labels[index, columns_M]
        return row

    def empty(self, index: int) -> Batch:
        """A row that counts for nothing; of length 1, as attention over no token gives NaN."""
        patch = self.record_set.manifest["patch"]
        return {
            "patches": np.zeros((self.budget, patch * patch * 3), np.uint8),
            "positions": np.zeros((self.budget, 3), np.int32),
            "length": np.int32(1),
            "labels": np.full(self.labels_drawn, -1, np.int32),
            "weight": np.float32(0),
            "index": np.int64(index),
        }

    def _draw_columns(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """M columns, each as likely as any other; an empty one only where no label is left."""
        if self.labels is None:
            filled = np.arange(self.labels_drawn)
        else:
            filled = np.flatnonzero(self.labels[index] >= 0)
        if len(filled) >= self.labels_drawn:
            return filled[rng.choice(len(filled), self.labels_drawn, replace=False)]
        return np.argsort(self.labels[index] < 0, kind="stable")[: self.labels_drawn]

    def _sequence(self, index: int, rng: np.random.Generator | None) -> PatchSequence:
        if rng is None:
            return self.record_set[index].sequence
        record = self.record_set.record(
            index, lambda image: see_picture(image, self.image_size, self.augment, rng)
        )
        if self.augment.flip and rng.uniform() < self.augment.flip:
            return flip_sequence(record.sequence, record.view[1] // record.sequence.patch)
        return record.sequence

    def _check(self, index: int, sequence: PatchSequence) -> None:
        patch = self.record_set.manifest["patch"]
        if len(sequence) > self.budget or sequence.patch != patch:
            raise RecordError(
                f"record {index} of {self.record_set.path} has {len(sequence)} patches of side "
                f"{sequence.patch}, expected at most {self.budget} of side {patch}"
            )


class Pool:
    """The examples of several sources, their records counted through.

    Args:
      parts: the examples of each source.

    Attributes:
      ranges: per source the numbers of its records.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)
        edges = itertools.accumulate((len(part) for part in parts), initial=0)
        self.ranges = [range(start, stop) for start, stop in itertools.pairwise(edges)]

    def draw(self, number: int, rng: np.random.Generator) -> Batch:
        """Record `number`, augmented; the row's `index` is that number."""
        part, index = self._find(number)
        return {**self._parts[part].draw(index, rng), "index": np.int64(number)}

    def check(self, number: int) -> None:
        """Raises RecordError, with the reason, if record `number` cannot be read."""
        part, index = self._find(number)
        self._parts[part].check(index)

    def _find(self, number: int) -> tuple[int, int]:
        part = bisect.bisect_right(self.ranges, number, key=lambda numbers: numbers.start) - 1
        return part, number - self.ranges[part].start


def make_examples(
    record_set: RecordSet,
    budget: int,
    labels: str | None,
    labels_drawn: int | None,
    image_size: int = 0,
    augment: AugmentConfig = NO_AUGMENT,
) -> Examples:
    """Checks what can be checked before the first batch.

    Args:
      record_set, budget, labels, image_size, augment: as for `make_loader`.
      labels_drawn: None takes all stored.

    Raises:
      ValueError: as `make_loader`.
    """
    if len(record_set) == 0:
        raise ValueError(f"record set {record_set.path} is empty")
    longest = record_set.manifest["tokens"]["max"]
    patch, packed_size = record_set.manifest["patch"], record_set.manifest["size"]
    if record_set.manifest.get("storage") == PICTURE:
        image_size = image_size or packed_size
        if image_size < patch or image_size % patch:
            raise ValueError(f"image_size = {image_size} must be a multiple of the patch {patch}")
        longest = (image_size // patch) ** 2
    elif image_size not in (0, packed_size) or augment.for_pictures:
        raise ValueError(
            f"{record_set.path} holds patches of size {packed_size}, which can be flipped, but "
            f"neither cropped nor recoloured (augment = {augment}) nor shown at image_size = "
            f"{image_size}: pack images for that, or videos at that size"
        )
    if longest > budget:
        raise ValueError(
            f"budget = {budget} is below the longest sequence of {record_set.path} ({longest} "
            f"patches): raise the budget to at least {longest} or pack with a smaller one"
        )
    values = None if labels is None else load_labels(record_set, labels).values
    stored = 1 if values is None else values.shape[1]
    drawn = stored if labels_drawn is None else labels_drawn
    if drawn < 1 or (values is not None and drawn > stored):
        raise ValueError(
            f"labels_drawn = {drawn} must lie in 1..{stored}, the labels that {labels!r} stores "
            "per record"
        )
    return Examples(record_set, budget, values, drawn, image_size, augment)


def make_pool(
    record_sets: Sequence[RecordSet],
    budget: int,
    labels: str | None,
    labels_drawn: int,
    image_size: int,
    augment: AugmentConfig,
) -> Pool:
    """The examples of several sets, which must agree on their patch side and their classes.

    Args:
      record_sets: at least one.
      budget, labels, labels_drawn, image_size, augment: as for `make_loader`.

    Raises:
      ValueError: as `make_loader`.
    """
    options = (budget, labels, labels_drawn, image_size, augment)
    parts = [make_examples(record_set, *options) for record_set in record_sets]
    first, *others = record_sets
    for other in others:
        sides = first.manifest["patch"], other.manifest["patch"]
        if sides[0] != sides[1]:
            raise ValueError(
                f"{first.path} and {other.path} hold patches of {sides[0]} and {sides[1]} pixels: "
                "sets that are mixed must have one patch side"
            )
        if labels is not None:
            ours, theirs = (_classes(load_labels(found, labels)) for found in (first, other))
            if ours != theirs:
                counts = [sum(part[0] for part in classes) for classes in (ours, theirs)]
                raise ValueError(
                    f"labels {labels!r} of {first.path} ({counts[0]} classes) and of {other.path} "
                    f"({counts[1]} classes) mean different classes: pack the files together, or "
                    "give both sets to one `codecvit cluster`"
                )
    return Pool(parts)


def _classes(labels: Labels) -> list[tuple[Any, ...]]:
    """What the class numbers of labels mean, per labelling: their number, names, centres."""
    parts = labels.meta.get("parts", [labels.meta])
    return [(m["num_classes"], m.get("classes"), m.get("centres_sha256")) for m in parts]
