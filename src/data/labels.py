"""Label files of a record set: labels/NAME.npy (int32 [records, n], -1 = none) beside
labels/NAME.json.

Labels never touch the records: given labels and cluster labels go the same way, and a new round of
clustering is one new file. The hash of the shard list in the JSON file ties the rows to the records
that they were made for.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import write_atomic

if TYPE_CHECKING:
    from .records import RecordSet

LABELS_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """Labels of every record of a set.

    Attributes:
      name: name of the label file.
      values: int32 [records, n], classes in [0, num_classes), -1 = no label.
      num_classes: number of classes that the values may take.
      classes: names of the classes, or None where they have none (clusters).
      meta: everything that the JSON file says.
    """

    name: str
    values: np.ndarray
    num_classes: int
    classes: tuple[str, ...] | None
    meta: dict[str, Any]

    def in_classes(self, classes: Sequence[str]) -> np.ndarray:
        """The values renumbered by another list of class names, so that two sets agree on their
        numbers.

        Args:
          classes: the names, for example `classes` of the training set's labels.

        Returns:
          int32 [records, n]; -1 stays -1.

        Raises:
          ValueError: these labels have no names, or one that `classes` lacks.
        """
        if self.classes is None:
            raise ValueError(f"labels {self.name!r} have no class names to match by")
        place = {name: number for number, name in enumerate(classes)}
        missing = [name for name in self.classes if name not in place]
        if missing:
            raise ValueError(
                f"labels {self.name!r} have classes that are not among the others: {missing}"
            )
        table = np.array([place[name] for name in self.classes] + [-1], np.int32)
        return table[self.values]


def save_labels(
    record_set: RecordSet, name: str, values: np.ndarray, meta: Mapping[str, Any]
) -> Path:
    """Writes labels/NAME.npy and labels/NAME.json into a record set.

    Args:
      record_set: the set that the rows belong to.
      name: letters, digits, `.`, `_`, `-`.
      values: int32 [records, n], -1 = no label.
      meta: JSON values to keep beside; `num_classes` is required, `classes` (names) is optional.

    Returns:
      The path of the .npy file.

    Raises:
      ValueError: the name, shape, type or range does not fit.
    """
    files = label_files(name, values, meta, len(record_set), record_set.shard_hash)
    folder = record_set.path / "labels"
    folder.mkdir(exist_ok=True)
    for file_name, data in files.items():
        write_atomic(folder / file_name, data)
    return folder / f"{name}.npy"


def label_files(
    name: str, values: np.ndarray, meta: Mapping[str, Any], records: int, shard_hash: str
) -> dict[str, bytes]:
    """The content of NAME.npy and NAME.json, by file name.

    Args:
      name, values, meta: as for `save_labels`.
      records: number of records of the set.
      shard_hash: that of the set.

    Raises:
      ValueError: the name, shape, type or range does not fit.
    """
    check_label_name(name)
    if values.dtype != np.int32 or values.ndim != 2 or len(values) != records:
        raise ValueError(
            f"labels {name!r} must be int32 [{records}, n], got {values.dtype} {list(values.shape)}"
        )
    num_classes = int(meta["num_classes"])
    if values.size and (values.min() < -1 or values.max() >= num_classes):
        raise ValueError(
            f"labels {name!r} lie in {values.min()}..{values.max()}, outside -1..{num_classes - 1}"
        )
    sidecar = {
        **meta,
        "version": LABELS_VERSION,
        "num_classes": num_classes,
        "records": len(values),
        "n": values.shape[1],
        "shard_hash": shard_hash,
    }
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return {
        f"{name}.npy": file.getvalue(),
        f"{name}.json": json.dumps(sidecar, indent=1, sort_keys=True).encode(),
    }


def load_labels(record_set: RecordSet, name: str) -> Labels:
    """Reads labels/NAME.npy of a record set, or several of them side by side.

    Args:
      record_set: the set.
      name: a label column given when packing, or the name under which `codecvit cluster` wrote.
        "a+b" puts the columns of b behind those of a and counts b's classes on from a's: several
        labelings for one head.

    Returns:
      The labels.

    Raises:
      ValueError: there is no such file, or it was made for other records.
    """
    parts = [_load_file(record_set, part) for part in name.split("+")]
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0] + [part.num_classes for part in parts])
    values = [
        np.where(part.values >= 0, part.values + offset, -1).astype(np.int32)
        for part, offset in zip(parts, offsets, strict=False)
    ]
    meta = {"parts": [part.meta for part in parts]}
    return Labels(name, np.concatenate(values, axis=1), int(offsets[-1]), None, meta)


def _load_file(record_set: RecordSet, name: str) -> Labels:
    check_label_name(name)
    path = record_set.path / "labels" / f"{name}.npy"
    if not path.is_file() or not path.with_suffix(".json").is_file():
        have = ", ".join(label_names(record_set)) or "none"
        raise ValueError(
            f"labels {name!r}: no {path} with its .json (labels of this set: {have}); "
            "`codecvit cluster` makes labels"
        )
    meta = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if meta["version"] != LABELS_VERSION:
        raise ValueError(
            f"{path} has version {meta['version']!r}, this program reads {LABELS_VERSION}"
        )
    if meta["shard_hash"] != record_set.shard_hash:
        raise ValueError(
            f"{path} was made for other records (shard list {meta['shard_hash'][:12]}, these are "
            f"{record_set.shard_hash[:12]}): run `codecvit cluster` again"
        )
    values = np.load(path, allow_pickle=False)
    if values.dtype != np.int32 or values.shape != (len(record_set), meta["n"]):
        raise ValueError(
            f"{path} is {values.dtype} {list(values.shape)}, expected int32 "
            f"[{len(record_set)}, {meta['n']}]: run `codecvit cluster` again"
        )
    classes = meta.get("classes")
    return Labels(
        name, values, meta["num_classes"], None if classes is None else tuple(classes), meta
    )


def label_names(record_set: RecordSet) -> list[str]:
    """Names under which the record set has label files."""
    return sorted(path.stem for path in (record_set.path / "labels").glob("*.npy"))


def sort_classes(names: set[str]) -> list[str]:
    """Class names in their order: numbers by value before text, so that digit "10" follows "9"."""
    return sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))


def given_labels(rows: Sequence[Mapping[str, str]]) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Numbers for labels that are given as text.

    Args:
      rows: per record a mapping of column name to class name; a column may be missing.

    Returns:
      Per column int32 [records, 1] (-1 = none) and the class names that the numbers stand for.
    """
    columns = sorted({column for row in rows for column in row})
    result = {}
    for column in columns:
        classes = sort_classes({row[column] for row in rows if column in row})
        number = {name: i for i, name in enumerate(classes)}
        values = np.array([[number.get(row.get(column, None), -1)] for row in rows], np.int32)
        result[column] = (values, classes)
    return result


def check_label_name(name: str) -> None:
    """Raises ValueError unless a name can be that of a label file."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ValueError(f"label name {name!r} may hold letters, digits, '.', '_' and '-' only")
