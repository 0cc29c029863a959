"""Record sets: a folder of ArrayRecord shards of one mode, its manifest, its index and its labels.

part-00000-of-00004.array_record ...   one record per row, in key order
index.jsonl                            key, length and given labels of every record
failures.jsonl                         files that gave no record, and why
labels/NAME.npy, labels/NAME.json      see labels.py
manifest.json                          written last: without it the set is unfinished
parts/part-00000-of-00004.json ...     what `codecvit pack` needs to go on, see parts.py
"""

from __future__ import annotations

import bisect
import collections
import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from ..files import PathOrUrl, is_url, join, make_folder, write_atomic
from .cache import CachedShard, cache_need, copy_small_files, open_cached
from .labels import Labels, given_labels, label_files, label_names, load_labels, save_labels
from .record import Record, RecordError, Storage, decode_record, encode_record
from .shards import check_shard, open_shard

__all__ = [
    "Labels",
    "Record",
    "RecordError",
    "RecordSet",
    "Storage",
    "decode_record",
    "encode_record",
    "label_names",
    "load_labels",
    "save_labels",
]

SET_VERSION = 1
WIDE_GAP = 1.0
"""Seconds between samples beyond which block motion means little (docs/codec.md)."""


class RecordSet:
    """A finished record set, opened for reading.

    Args:
      path: its folder or URL. Shards of a URL are fetched when they are first read (cache.py).

    Attributes:
      path: its local folder; of a URL a copy without the shards.
      manifest: what manifest.json says.

    Raises:
      RecordError: the folder is no finished record set, or a shard is missing, short or damaged.
    """

    def __init__(self, path: PathOrUrl) -> None:
        self._url = os.fspath(path) if is_url(path) else None
        sizes: Mapping[str, int] = {}
        if self._url is None:
            self.path = Path(path)
        else:
            self.path, sizes = copy_small_files(self._url)
        self.manifest = _read_manifest(self.path)
        shards = self.manifest["shards"]
        self._ends = _running_sum(shard["records"] for shard in shards)
        self._lock = threading.Lock()
        self._readers: dict[int, ArrayRecordReader] = {}
        self._cached: dict[int, CachedShard] = {}
        for shard in shards:
            here, size = self.path / shard["name"], sizes.get(shard["name"])
            if self._url is None:
                check_shard(here, shard)
            elif size != shard["bytes"] and not here.is_file():
                raise RecordError(
                    f"shard {join(self._url, shard['name'])} has {size} bytes instead of "
                    f"{shard['bytes']}: copy it again or pack again"
                )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Record:
        """Record `index`, decoded."""
        return self.record(index)

    def record(self, index: int, see: Callable[[Image.Image], np.ndarray] | None = None) -> Record:
        """Record `index`, decoded; `see` as for `decode_record`."""
        data = self.read(index)
        try:
            return decode_record(data, see)
        except RecordError as error:
            raise RecordError(f"{self._where(index)}: {error}") from error

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Loader workers get a copy without open files and without the lock."""
        state = {**self.__dict__, "_readers": {}, "_cached": {}}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def read(self, index: int) -> bytes:
        """The bytes of record `index`.

        Raises:
          IndexError: there is no such record.
          RecordError: the shard is damaged at this record.
        """
        shard, row = self._locate(index)
        try:
            return self._reader(shard).read([row])[0]
        except RuntimeError as error:
            raise RecordError(f"{self._where(index)}: {error}") from error

    @functools.cached_property
    def index(self) -> list[dict[str, Any]]:
        """Per record its `key`, `length` (patches) and given `labels`; read once, on first use."""
        path = self.path / "index.jsonl"
        # Lines of bytes: in text, class names with a separator of Unicode's would count as two.
        lines = path.read_bytes().splitlines() if path.is_file() else []
        if len(lines) != len(self):
            raise RecordError(
                f"{path} lists {len(lines)} records, the shards hold {len(self)}: pack again"
            )
        return [json.loads(line) for line in lines]

    @property
    def keys(self) -> list[str]:
        """Keys of the records, in order."""
        return [entry["key"] for entry in self.index]

    @property
    def shard_hash(self) -> str:
        """Hex hash of the shards' names, counts and contents: equal hashes, equal records."""
        return hash_shards(self.manifest["shards"])

    def cache_need(self, window: int) -> int:
        """Bytes of the cache that reading in windows of so many records needs; 0 without a URL."""
        return 0 if self._url is None else cache_need(self.manifest["shards"], window)

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _where(self, index: int) -> str:
        shard, row = self._locate(index)
        name = self.manifest["shards"][shard]["name"]
        return f"record {index} (row {row} of {self.path / name})"

    def _reader(self, shard: int) -> ArrayRecordReader:
        if self._url is not None:
            return self._cached_reader(self._url, shard)
        with self._lock:
            if shard not in self._readers:
                path = self.path / self.manifest["shards"][shard]["name"]
                self._readers[shard] = open_shard(path)
            return self._readers[shard]

    def _cached_reader(self, url: str, shard: int) -> ArrayRecordReader:
        with self._lock:
            found = self._cached.get(shard)
        if found is None or not found.in_use():
            # Not under our lock: the other threads read on while this one fetches.
            found = open_cached(url, self.path, self.manifest["shards"][shard])
            with self._lock:
                kept = {n: other for n, other in self._cached.items() if other.is_there()}
                self._cached = {**kept, shard: found}
        return found.reader


def write_set(
    folder: PathOrUrl,
    description: Mapping[str, Any],
    shards: Sequence[Mapping[str, Any]],
    index: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Writes index, failures, given labels and, last, the manifest beside finished shards.

    Args:
      folder: folder or URL of the set.
      description: what the manifest says besides counts: mode, size, patch, budget, options...
      shards: what `ShardWriter.close` said, in order.
      index: per record its `key`, `length` and `labels`, of a video also `gap`, of a record with
        texts their names as `texts`, in order.
      failures: one mapping per file that gave no record.

    Returns:
      The manifest.
    """
    labels = given_labels([entry["labels"] for entry in index])
    lengths = [entry["length"] for entry in index]
    texts = collections.Counter(name for entry in index for name in entry.get("texts", ()))
    if texts:  # left out else, so that sets without texts keep their bytes
        description = {**description, "texts": dict(sorted(texts.items()))}
    manifest = {
        **description,
        "version": SET_VERSION,
        "records": len(lengths),
        "tokens": {
            "min": min(lengths, default=0),
            "max": max(lengths, default=0),
            "sum": sum(lengths),
        },
        "wide_gaps": sum(entry.get("gap", 0) > WIDE_GAP for entry in index),
        "label_columns": list(labels),
        "classes": {column: classes for column, (_, classes) in labels.items()},
        "failures": len(failures),
        "shards": list(shards),
    }
    write_atomic(join(folder, "index.jsonl"), json_lines(index))
    write_atomic(join(folder, "failures.jsonl"), json_lines(failures))
    if labels:
        make_folder(join(folder, "labels"))
    for column, (values, classes) in labels.items():
        meta = {"num_classes": len(classes), "classes": classes, "origin": "given"}
        files = label_files(column, values, meta, len(index), hash_shards(shards))
        for name, data in files.items():
            write_atomic(join(folder, "labels", name), data)
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)
    write_atomic(join(folder, "manifest.json"), text.encode())
    return manifest


def json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as lines of JSON; equal rows give equal bytes."""
    text = (json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows)
    return "".join(f"{line}\n" for line in text).encode()


def hash_shards(shards: Sequence[Mapping[str, Any]]) -> str:
    """Hex sha256 over the names, counts and content hashes of a shard list."""
    text = json.dumps([[shard["name"], shard["records"], shard["sha256"]] for shard in shards])
    return hashlib.sha256(text.encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        inside = sorted(found.parent.name for found in folder.glob("*/manifest.json"))
        hint = (
            f"it holds the record sets {', '.join(inside)}: name one of them"
            if inside
            else ("pack it first, or finish packing")
        )
        raise RecordError(f"{folder} is no finished record set (no manifest.json): {hint}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"{path} is damaged: {error}") from error
    if manifest.get("version") != SET_VERSION:
        raise RecordError(
            f"{path} has version {manifest.get('version')!r}, this program reads {SET_VERSION}: "
            "pack again or install a matching codecvit"
        )
    return manifest


def _running_sum(numbers: Iterator[int]) -> list[int]:
    total, sums = 0, []
    for number in numbers:
        total += number
        sums.append(total)
    return sums
