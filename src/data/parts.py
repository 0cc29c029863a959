"""A record set that is made part by part: by one run, by array jobs, or after an interruption.

A part is one shard with what was learned while writing it, `parts/part-00000-of-00004.json`: the
shard's entry of the manifest, its lines of the index, its failures. It is written after the shard,
so its presence says that the shard is whole; the fingerprint in it says of what. Whoever finds all
parts complete writes the rest of the set. Doing that twice, at the same time even, gives the same
bytes.
"""

from __future__ import annotations

import contextlib
import json
import posixpath
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..files import (
    exists,
    is_url,
    join,
    list_files,
    make_folder,
    read_bytes,
    remove,
    upload,
    write_atomic,
)
from ..jobs import Shard
from .record import RecordError
from .records import json_lines, write_set
from .shards import ShardWriter, check_shard, shard_name


class PartialSet:
    """A record set in the making, or a finished one of the same files and options.

    Args:
      folder: folder or URL of the set.
      description: what the manifest will say besides counts, with `fingerprint`.
      plan: per shard the places of the files that it covers.
      job: which shards fall to this job.
      overwrite: replace a finished set of other files or options.

    Attributes:
      folder: as given.
      manifest: the manifest of the finished set, or None.
      num_shards: number of its shards.
      todo: shards of this job that are still to be made.
      failed: keys of files that are known to have failed, in what is there already.

    Raises:
      RecordError: a finished set of other files or options is in the way.
    """

    def __init__(
        self,
        folder: str,
        description: Mapping[str, Any],
        plan: Sequence[range],
        job: Shard,
        overwrite: bool = False,
    ) -> None:
        self.folder = folder
        self._description = description
        self.num_shards = len(plan)
        self.manifest = self._finished(overwrite)
        self.todo: list[int] = []
        if self.manifest is not None:
            self.failed = {failure["key"] for failure in self._listed_failures()}
            return
        make_folder(join(folder, "parts"))
        self.failed = set()
        sizes = list_files(folder)
        for number in filter(job.takes, range(self.num_shards)):
            part = self._part(number, sizes)
            if part is None:
                self.todo.append(number)
            else:
                self.failed |= {failure["key"] for failure in part["failures"]}

    def writer(self, number: int) -> PartWriter:
        """Starts part `number`."""
        name = shard_name(number, self.num_shards)
        return PartWriter(self.folder, name, self._description["fingerprint"])

    def failures(self) -> list[dict[str, str]]:
        """What gave no record, in the finished set or else in all parts that are complete."""
        if self.manifest is not None:
            return self._listed_failures()
        sizes = list_files(self.folder)
        parts = [self._part(number, sizes) for number in range(self.num_shards)]
        return [failure for part in parts if part is not None for failure in part["failures"]]

    def finish(self) -> int:
        """Writes the rest of the set if all of its parts are complete, and sets `manifest`.

        Without any record there is no set: then only failures.jsonl is written.

        Returns:
          Number of complete parts.
        """
        sizes = list_files(self.folder)
        found = [self._part(number, sizes) for number in range(self.num_shards)]
        parts = [part for part in found if part is not None]
        if len(parts) < len(found):
            return len(parts)
        self._clear(sizes)
        index = [entry for part in parts for entry in part["index"]]
        failures = [failure for part in parts for failure in part["failures"]]
        if index:
            shards = [part["shard"] for part in parts]
            self.manifest = write_set(self.folder, self._description, shards, index, failures)
        else:
            write_atomic(join(self.folder, "failures.jsonl"), json_lines(failures))
        return len(parts)

    def _listed_failures(self) -> list[dict[str, str]]:
        lines = read_bytes(join(self.folder, "failures.jsonl")).splitlines()
        return [json.loads(line) for line in lines]

    def _finished(self, overwrite: bool) -> dict[str, Any] | None:
        """The manifest of a set that is whole and the one wanted."""
        path = join(self.folder, "manifest.json")
        if not exists(path):
            return None
        manifest = json.loads(read_bytes(path))
        same = manifest.get("fingerprint") == self._description["fingerprint"]
        if not same and not overwrite:
            raise RecordError(
                f"{self.folder} holds a set of other files or options: choose another --out or "
                "give --overwrite"
            )
        sizes = list_files(self.folder)
        if same and all(self._is_whole(shard, sizes) for shard in manifest["shards"]):
            return manifest
        remove(path)  # first of all, so that nobody takes what follows for the set
        return None

    def _part(self, number: int, sizes: Mapping[str, int]) -> dict[str, Any] | None:
        """What the part file says, or None if the part is not there, not ours or not whole."""
        name = _part_name(shard_name(number, self.num_shards))
        if name not in sizes:
            return None
        part = json.loads(read_bytes(join(self.folder, name)))
        if part["fingerprint"] != self._description["fingerprint"]:
            return None
        return part if self._is_whole(part["shard"], sizes) else None

    def _is_whole(self, shard: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
        if is_url(self.folder):
            return sizes.get(shard["name"]) == shard["bytes"]
        try:
            check_shard(Path(self.folder) / shard["name"], shard)
        except RecordError:
            return False
        return True

    def _clear(self, names: Mapping[str, int]) -> None:
        """Removes shards and parts of an earlier set, and what killed jobs left half-written."""
        shards = {shard_name(number, self.num_shards) for number in range(self.num_shards)}
        ours = shards | {_part_name(shard) for shard in shards}
        for name in names:
            base = posixpath.basename(name)
            made_here = re.fullmatch(r"part-\d+-of-\d+\.(array_record|json)", base)
            if (made_here and name not in ours) or re.fullmatch(r"\.part-.*\.tmp", base):
                remove(join(self.folder, name))


class PartWriter:
    """Writes one part; takes the outcomes of its files in key order."""

    def __init__(self, folder: str, name: str, fingerprint: str) -> None:
        self._folder, self._name, self._fingerprint = folder, name, fingerprint
        self._index: list[dict[str, Any]] = []
        self._failures: list[dict[str, str]] = []
        self._open = contextlib.ExitStack()
        # A remote shard is written here and then goes up as a whole.
        self._local = Path(folder)
        if is_url(folder):
            staging = tempfile.TemporaryDirectory(prefix="codecvit-")
            self._local = Path(self._open.enter_context(staging))
        self._shard = self._open.enter_context(ShardWriter(self._local, name))

    def write(self, data: bytes, entry: Mapping[str, Any]) -> None:
        """Appends a record: its bytes, and its line of the index (`key`, `length`, `labels`)."""
        self._shard.write(data)
        self._index.append(dict(entry))

    def fail(self, failure: Mapping[str, str]) -> None:
        """Notes a file that gave no record."""
        self._failures.append(dict(failure))

    def close(self) -> None:
        """Completes the part."""
        shard = self._shard.close()
        if is_url(self._folder):
            upload(self._local / self._name, join(self._folder, self._name))
        part = {
            "fingerprint": self._fingerprint,
            "shard": shard,
            "index": self._index,
            "failures": self._failures,
        }
        text = json.dumps(part, sort_keys=True, ensure_ascii=False)
        write_atomic(join(self._folder, _part_name(self._name)), text.encode())

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drops a part that was not closed."""
        self._open.close()


def _part_name(shard: str) -> str:
    return f"parts/{Path(shard).stem}.json"
