"""Data sets of one's own: CSV lists and class folders, read as `codecvit pack` reads them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..data.annotation_files import Files
from ..data.labels import sort_classes
from ..data.sources import LABEL_COLUMN, Item, list_items
from .listing import Listing, Split, check_classes

_SPLITS = (("train",), ("test", "val", "validation"))


def listed_in_csv(root: Path, num_classes: int | None) -> Listing:
    """train.csv and test.csv (or val.csv) with the columns path, label and, if wanted, start, end.

    Args:
      root: folder of the lists; paths in them are relative to it.
      num_classes: of a known data set; None takes those that the lists name.

    Labels are numbers, or names, which are then numbered in their order. Several labels of one
    example stand in one field, with ";" between them.
    """
    return _read(root, num_classes, ".csv")


def in_class_folders(root: Path, num_classes: int | None) -> Listing:
    """train/CLASS/... and test/CLASS/... (or val/); arguments as for `listed_in_csv`."""
    return _read(root, num_classes, "")


def _read(root: Path, num_classes: int | None, ending: str) -> Listing:
    found = [_items(root, names, ending) for names in _SPLITS]
    labels = [[_labels(item, root) for item in items] for items in found]
    named = {text for of_split in labels for texts in of_split for text in texts}
    classes = None
    if all(text.isdecimal() for text in named):
        numbers = {text: int(text) for text in named}
    else:
        classes = sort_classes(named)
        if num_classes is not None:
            check_classes(classes, num_classes, str(root))
        numbers = {text: i for i, text in enumerate(classes)}
    limit = num_classes or max(numbers.values(), default=-1) + 1
    splits = []
    for items, of_split in zip(found, labels, strict=True):
        split = Split(Files(root), limit)
        for item, texts in zip(items, of_split, strict=True):
            with split.line(item.source):
                split.add_item(item, tuple(numbers[text] for text in texts))
        splits.append(split)
    return Listing(classes, *splits)


def _items(root: Path, names: tuple[str, ...], ending: str) -> list[Item]:
    for name in names:
        place = root / f"{name}{ending}"
        if place.exists():
            items = list_items([place], class_folders=not ending)
            # An image is a video of one frame here: all examples have the same inputs.
            return [dataclasses.replace(item, kind="video") for item in items]
    wanted = " or ".join(f"{name}{ending or '/'}" for name in names)
    raise ValueError(f"{wanted} is missing in {root}")


def _labels(item: Item, root: Path) -> list[str]:
    others = set(item.labels) - {LABEL_COLUMN}
    if others:
        raise ValueError(
            f"{root}: columns {', '.join(sorted(others))} are unknown, there may be path, start, "
            f"end and {LABEL_COLUMN}"
        )
    texts = item.labels.get(LABEL_COLUMN, "").split(";")
    return [text.strip() for text in texts if text.strip()]
