"""One shard: an ArrayRecord file that is whole or absent."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from ..files import sha256_of
from .record import RecordError

# Groups of one record make every record reachable by itself; patches are compressed already.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


def shard_name(number: int, count: int) -> str:
    """File name of shard `number` of `count`."""
    return f"part-{number:05d}-of-{count:05d}.array_record"


class ShardWriter:
    """Writes one shard under a hidden name, which `close` turns into its own.

    Args:
      folder: an existing folder.
      name: `shard_name`.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / name
        # Unique, because a job that was thought dead may still write the same shard.
        self._temporary = folder / f".{name}.{uuid.uuid4().hex[:12]}.tmp"
        self._writer: ArrayRecordWriter | None = ArrayRecordWriter(
            str(self._temporary), _WRITER_OPTIONS
        )
        self._records = 0

    def write(self, data: bytes) -> None:
        """Appends the bytes of one record."""
        self._writer.write(data)
        self._records += 1

    def close(self) -> dict[str, Any]:
        """Gives the shard its name.

        Returns:
          What a manifest says of it: `name`, `records`, `bytes`, `sha256`.
        """
        self._writer.close()
        self._writer = None
        self._temporary.replace(self._path)
        return {
            "name": self._path.name,
            "records": self._records,
            "bytes": self._path.stat().st_size,
            "sha256": sha256_of(self._path),
        }

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drops a shard that was not closed."""
        if self._writer is not None:
            self._writer.close()
            self._temporary.unlink()
            self._writer = None


def open_shard(path: Path) -> ArrayRecordReader:
    """A reader of single records."""
    return ArrayRecordReader(str(path), _READER_OPTIONS)


def check_shard(path: Path, shard: Mapping[str, Any]) -> None:
    """Raises RecordError unless a file has the size and the number of records that it should have.

    (ArrayRecord itself reads a missing file as zero records without a word.)

    Args:
      path: the file.
      shard: what `ShardWriter.close` said of it.
    """
    if not path.is_file():
        raise RecordError(f"shard {path} is missing: pack again or copy it back")
    size = path.stat().st_size
    if size != shard["bytes"]:
        raise RecordError(
            f"shard {path} has {size} bytes instead of {shard['bytes']}: copy it again"
        )
    reader = open_shard(path)
    if not reader.ok() or reader.num_records() != shard["records"]:
        raise RecordError(
            f"shard {path} holds {reader.num_records()} readable records instead of "
            f"{shard['records']}: it is damaged, copy it again or pack again"
        )
    reader.close()
