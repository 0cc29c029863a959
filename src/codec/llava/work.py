"""Many packs at once, by one job or by array jobs; and who may finish the work of all."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...files import exists, join, make_folder, open_read, read_bytes, write_atomic
from ...jobs import Failure, JobOptions, Shard, Summary, run_jobs
from .keys import config_hash
from .options import MosaicOptions
from .packs import EXPECTED, PackTask, make_pack
from .rows import json_line

_SHOWN = 10
_LINES = 10  # of progress, for a whole run

Outcome = dict[str, Any]
"""Of one video, as JSON: `folder` and `images`, or `kind` and `reason` of a failure."""


@dataclasses.dataclass
class Tally:
    """Counts of a run."""

    ok: int = 0
    skipped: int = 0
    failed: int = 0

    @property
    def summary(self) -> Summary:
        return Summary(self.ok, self.skipped, self.failed)


def run_packs(
    tasks: Mapping[str, PackTask], options: MosaicOptions, jobs: JobOptions, tally: Tally
) -> Iterator[tuple[str, Outcome]]:
    """Makes the packs of this job, in the order of their keys.

    Args:
      tasks: by key; all that this job is to do.
      options: how.
      jobs: workers, runner and time limit.
      tally: counts what comes.

    Yields:
      (key, outcome).
    """
    keys = sorted(tasks)
    results = run_jobs(
        functools.partial(make_pack, options),
        (tasks[key] for key in keys),
        workers=jobs.workers,
        runner=jobs.runner,
        time_limit=jobs.time_limit,
        expected=EXPECTED,
    )
    for done, (key, (task, result)) in enumerate(zip(keys, results, strict=True), start=1):
        if isinstance(result, Failure):
            tally.failed += 1
            yield key, failed(result.kind, result.reason.removeprefix(f"{task.video}: "))
        else:
            tally.ok += not result.skipped
            tally.skipped += result.skipped
            yield key, {"folder": task.folder, "images": result.images}
        if done * _LINES // len(keys) > (done - 1) * _LINES // len(keys):
            print(f"videos {done}/{len(keys)}", file=sys.stderr, flush=True)


def failed(kind: str, reason: str) -> Outcome:
    """The outcome of a video that gave nothing."""
    return {"kind": kind, "reason": reason}


class Parts:
    """Outcomes of array jobs, `<out>.parts/part-00000-of-00004.json`; the last job has them all.

    Args:
      out: the file that is written in the end.
      made_of: what all jobs have to agree on; parts of other work do not count.
      shard: which job this is.
    """

    def __init__(self, out: str, made_of: Mapping[str, Any], shard: Shard) -> None:
        self._folder = f"{out}.parts"
        self._fingerprint = config_hash({**made_of, "jobs": shard.count})
        self._shard = shard

    def collect(self, mine: dict[str, Outcome]) -> dict[str, Outcome] | None:
        """Adds this job's outcomes to those of the others.

        Returns:
          All outcomes, or None while parts are missing.
        """
        if self._shard.count == 1:
            return mine
        make_folder(self._folder)
        part = {"fingerprint": self._fingerprint, "outcomes": mine}
        write_atomic(self._path(self._shard.index), json_line(part))
        every: dict[str, Outcome] = {}
        for index in range(self._shard.count):
            if not exists(self._path(index)):
                return None
            part = json.loads(read_bytes(self._path(index)))
            if part["fingerprint"] != self._fingerprint:
                return None
            every |= part["outcomes"]
        return every

    def _path(self, index: int) -> str:
        return join(self._folder, f"part-{index:05d}-of-{self._shard.count:05d}.json")


def file_hash(path: str) -> str:
    """sha256 of a file or URL, read in pieces."""
    digest = hashlib.sha256()
    with open_read(path) as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def write_failures(path: str, failures: Iterable[Mapping[str, Any]]) -> None:
    """Writes the list of failures, empty where there are none, so that no old list is left."""
    write_atomic(path, b"".join(map(json_line, failures)))


def print_failures(verb: str, outcomes: Mapping[str, Outcome]) -> None:
    """Tells of the first failures on the error stream."""
    found = [(key, outcome["reason"]) for key, outcome in outcomes.items() if "kind" in outcome]
    for key, reason in found[:_SHOWN]:
        print(f"codecvit llava {verb}: failed: {key}: {reason}", file=sys.stderr)
    if len(found) > _SHOWN:
        print(f"codecvit llava {verb}: {len(found) - _SHOWN} more failed", file=sys.stderr)
