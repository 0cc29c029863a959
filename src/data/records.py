"""Record sets: a folder of ArrayRecord shards of one mode, its manifest, its index and its labels.

part-00000-of-00004.array_record ...   one record per row, in key order
index.jsonl                            key, length and given labels of every record
failures.jsonl                         files that gave no record, and why
manifest.json                          written last: without it the set is unfinished
labels/NAME.npy, labels/NAME.json      see labels.py
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from .files import sha256_of, write_atomic
from .labels import Labels, given_labels, label_names, load_labels, save_labels
from .record import Record, RecordError, Storage, decode_record, encode_record

__all__ = [
    "Labels",
    "Record",
    "RecordError",
    "RecordSet",
    "RecordWriter",
    "Storage",
    "decode_record",
    "encode_record",
    "label_names",
    "load_labels",
    "save_labels",
]

SET_VERSION = 1
# Groups of one record make every record reachable by itself; patches are compressed already.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class RecordSet:
    """A finished record set, opened for reading.

    Attributes:
      path: its folder.
      manifest: what manifest.json says.

    Raises:
      RecordError: the folder is no finished record set, or a shard is missing, short or damaged.
        (ArrayRecord itself reads a missing file as zero records without a word.)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        shards = self.manifest["shards"]
        self._names = [shard["name"] for shard in shards]
        self._ends = _running_sum(shard["records"] for shard in shards)
        self._lock = threading.Lock()
        self._readers: dict[int, ArrayRecordReader] = {}
        for shard in shards:
            _check_shard(self.path / shard["name"], shard)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Record:
        """Record `index`, decoded."""
        data = self.read(index)
        try:
            return decode_record(data)
        except RecordError as error:
            raise RecordError(f"{self._where(index)}: {error}") from error

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Loader workers get a copy without open files and without the lock."""
        state = {**self.__dict__, "_readers": {}}
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
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
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

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _where(self, index: int) -> str:
        shard, row = self._locate(index)
        return f"record {index} (row {row} of {self.path / self._names[shard]})"

    def _reader(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            if shard not in self._readers:
                path = str(self.path / self._names[shard])
                self._readers[shard] = ArrayRecordReader(path, _READER_OPTIONS)
            return self._readers[shard]


class RecordWriter:
    """Writes one record set, in key order, by one process; the manifest comes last.

    Which record lies in which shard depends on the plan alone, never on the number of workers or on
    failures.

    Args:
      folder: folder of the set; made if needed. Shards of an earlier set in it are replaced.
      plan: per shard the range of places, of the sorted keys, that it covers (`jobs.shard_plan`).
    """

    def __init__(self, folder: str | Path, plan: Sequence[range]) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in [self._folder / "manifest.json", *self._folder.glob("*.array_record*")]:
            old.unlink(missing_ok=True)
        self._plan = plan
        self._shards: list[dict[str, Any]] = []
        self._index: list[dict[str, Any]] = []
        self._last_place = -1
        self._writer: ArrayRecordWriter | None = None
        self._written = 0

    def write(self, place: int, data: bytes, entry: Mapping[str, Any]) -> None:
        """Appends one record.

        Args:
          place: place of its key among all sorted keys; must grow from call to call.
          data: bytes of `encode_record`.
          entry: line of the index: `key`, `length`, `labels`.
        """
        assert place > self._last_place, "records must come in key order"
        while place >= self._plan[len(self._shards)].stop:
            self._close_shard()
        self._open_shard().write(data)
        self._last_place = place
        self._written += 1
        self._index.append(dict(entry))

    def finish(
        self, description: Mapping[str, Any], failures: Sequence[Mapping[str, str]]
    ) -> RecordSet:
        """Closes the shards and writes index, failures, manifest and given labels.

        Args:
          description: what the manifest says besides counts: mode, size, patch, budget, options...
          failures: one mapping per file that gave no record.

        Returns:
          The finished set, opened.
        """
        while len(self._shards) < len(self._plan):
            self._close_shard()
        labels = given_labels([entry["labels"] for entry in self._index])
        lengths = [entry["length"] for entry in self._index]
        manifest = {
            **description,
            "version": SET_VERSION,
            "records": len(lengths),
            "tokens": {
                "min": min(lengths, default=0),
                "max": max(lengths, default=0),
                "sum": sum(lengths),
            },
            "label_columns": list(labels),
            "classes": {column: classes for column, (_, classes) in labels.items()},
            "failures": len(failures),
            "shards": self._shards,
        }
        write_atomic(self._folder / "index.jsonl", _json_lines(self._index))
        write_atomic(self._folder / "failures.jsonl", _json_lines(failures))
        text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)
        write_atomic(self._folder / "manifest.json", text.encode())
        record_set = RecordSet(self._folder)
        for column, (values, classes) in labels.items():
            meta = {"num_classes": len(classes), "classes": classes, "origin": "given"}
            save_labels(record_set, column, values, meta)
        return record_set

    def give_up(self, failures: Sequence[Mapping[str, str]]) -> None:
        """Writes failures.jsonl alone: there is no record, hence no set."""
        write_atomic(self._folder / "failures.jsonl", _json_lines(failures))

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drops the shard that an error interrupted; without a manifest no shard counts."""
        if self._writer is not None:
            self._writer.close()
            self._temporary().unlink()
            self._writer = None

    def _name(self) -> str:
        return f"part-{len(self._shards):05d}-of-{len(self._plan):05d}.array_record"

    def _temporary(self) -> Path:
        return self._folder / f"{self._name()}.tmp"

    def _open_shard(self) -> ArrayRecordWriter:
        if self._writer is None:
            self._writer = ArrayRecordWriter(str(self._temporary()), _WRITER_OPTIONS)
            self._written = 0
        return self._writer

    def _close_shard(self) -> None:
        """Gives the current shard its final name; it is empty if all of its files failed."""
        self._open_shard().close()
        self._writer = None
        name = self._name()
        path = self._folder / name
        self._temporary().replace(path)
        self._shards.append(
            {
                "name": name,
                "records": self._written,
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            }
        )


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


def _check_shard(path: Path, shard: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise RecordError(f"shard {path} is missing: pack again or copy it back")
    size = path.stat().st_size
    if size != shard["bytes"]:
        raise RecordError(
            f"shard {path} has {size} bytes instead of {shard['bytes']}: copy it again"
        )
    reader = ArrayRecordReader(str(path), _READER_OPTIONS)
    if not reader.ok() or reader.num_records() != shard["records"]:
        raise RecordError(
            f"shard {path} holds {reader.num_records()} readable records instead of "
            f"{shard['records']}: it is damaged, copy it again or pack again"
        )
    reader.close()


def _json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = (json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows)
    return "".join(f"{line}\n" for line in text).encode()


def _running_sum(numbers: Iterator[int]) -> list[int]:
    total, sums = 0, []
    for number in numbers:
        total += number
        sums.append(total)
    return sums
