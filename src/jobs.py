"""Many files at once: the same results, in order, from one process, from many, and from Ray.

A worker that crashes or takes too long costs one item. It knows nothing of videos: a job is a
function of one item.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from .runners import RUNNERS, make_crew
from .schedule import Failure, Schedule

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Summary:
    """How many items gave a result, had one already, or failed."""

    ok: int = 0
    skipped: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"{self.ok} ok, {self.skipped} skipped, {self.failed} failed"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One job's share of the work of `count` jobs (an array job): number `index`, from 0.

    Raises:
      ValueError: there is no such share.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"shard = {self.index}/{self.count} must be i/N with 0 <= i < N, for example 0/16 "
                "to 15/16"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads `i/N`; raises ValueError for anything else."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise ValueError(f"shard = {text!r} must be i/N with 0 <= i < N, for example 0/16")
        return cls(int(index), int(count))

    def takes(self, number: int) -> bool:
        """Whether thing `number` of a numbered list falls to this job."""
        return number % self.count == self.index

    def mine(self, keys: Iterable[str]) -> list[str]:
        """The keys that fall to this job: every N-th of the sorted ones, whatever their order."""
        return sorted(set(keys))[self.index :: self.count]


@dataclasses.dataclass(frozen=True)
class JobOptions:
    """How a verb works through its files; none of it changes what comes out.

    Attributes:
      workers: processes; 0 works in this one, None takes one per core (of the cluster with Ray).
      runner: `local` or `ray`.
      time_limit: seconds that one file may take; None for any time.
      shard: which part of the work falls to this job.
      max_failures: failed files that are no error; None for any number, if anything was done.
    """

    workers: int | None = None
    runner: str = "local"
    time_limit: float | None = None
    shard: Shard = dataclasses.field(default_factory=Shard)
    max_failures: int | None = None

    def exit_status(self, summary: Summary) -> int:
        """0, or 1 if nothing could be done or more than `max_failures` items failed."""
        if summary.failed and not (summary.ok or summary.skipped):
            return 1
        return int(self.max_failures is not None and summary.failed > self.max_failures)


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `job_options` reads."""
    group = parser.add_argument_group("jobs", "how the files are worked through")
    group.add_argument(
        "--workers", type=int, help="processes; 0 works in this one (default: one per core)"
    )
    group.add_argument(
        "--runner",
        choices=RUNNERS,
        default="local",
        help="ray: on the cluster that RAY_ADDRESS names, or on this machine",
    )
    group.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="a file that takes longer is listed as failed (default: no limit)",
    )
    group.add_argument(
        "--shard", default="0/1", metavar="i/N", help="do part i of N, counted from 0: array jobs"
    )
    group.add_argument(
        "--max-failures",
        type=int,
        metavar="N",
        help="exit with 1 if more files fail (default: only if nothing could be done)",
    )


def job_options(args: argparse.Namespace) -> JobOptions:
    """What the options of `add_job_arguments` say; raises ValueError for what cannot work."""
    _check(args.workers, args.runner, args.time_limit)
    if args.max_failures is not None and args.max_failures < 0:
        raise ValueError(f"max_failures = {args.max_failures} must be 0 or more")
    return JobOptions(
        args.workers, args.runner, args.time_limit, Shard.parse(args.shard), args.max_failures
    )


def shard_plan(count: int, per_shard: int) -> list[range]:
    """Splits `count` places into the fewest shards of at most `per_shard`, of nearly equal size.

    Args:
      count: number of items, in key order.
      per_shard: most items that one shard covers.

    Returns:
      One range of places per shard. It depends on nothing else, so any number of workers and of
      array jobs writes the same shards.
    """
    if per_shard < 1:
        raise ValueError(f"files per shard = {per_shard} must be at least 1")
    shards = -(-count // per_shard)
    return [range(i * count // shards, (i + 1) * count // shards) for i in range(shards)]


def run_jobs(
    fn: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int | None,
    runner: str = "local",
    time_limit: float | None = None,
    expected: tuple[type[Exception], ...] = (ValueError, OSError),
) -> Iterator[tuple[Item, Result | Failure]]:
    """Calls `fn(item)` for every item and yields the results in the order of the items.

    An item whose worker dies (a crash in a native library, out of memory) is tried once more and is
    then a Failure of kind `WorkerDied`; one that takes too long loses its worker and is a Failure
    of kind `TimeLimit` at once. No other item is touched. A few results per worker are held,
    however many items there are.

    Args:
      fn: a function of a module (it is sent to other processes by name), with picklable item and
        result.
      items: what to call it with; taken one by one as results are fetched.
      workers: number of processes; 0 runs everything in this one, None takes one per core.
      runner: `local`, or `ray` for the cluster that RAY_ADDRESS names or else a local one.
      time_limit: seconds that one call may take.
      expected: errors that belong to an item and become a Failure; any other error is a bug and is
        raised.

    Yields:
      (item, result or Failure).

    Raises:
      ValueError: an option is out of range, or Ray is asked for and not installed.
      RuntimeError: workers do not start, for example because `fn` cannot be imported there.
    """
    _check(workers, runner, time_limit)
    call = functools.partial(_call, fn, expected)
    if workers == 0:
        return ((item, call(item)) for item in items)
    return _run(call, items, runner, workers, time_limit)


def _check(workers: int | None, runner: str, time_limit: float | None) -> None:
    if workers is not None and workers < 0:
        raise ValueError(f"workers = {workers} must be 0 or more")
    if workers == 0 and runner != "local":
        raise ValueError(f"workers = 0 works in this process, so it cannot be used with {runner}")
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"time_limit = {time_limit:g} must be above 0 seconds")
    if time_limit is not None and workers == 0:
        raise ValueError(
            f"time_limit = {time_limit:g} ends a worker process, so it needs workers of at least "
            "1, not 0"
        )


def _call(
    fn: Callable[[Item], Result], expected: tuple[type[Exception], ...], item: Item
) -> Result | Failure:
    try:
        return fn(item)
    except expected as error:
        return Failure(type(error).__name__, str(error))


def _run(
    call: Callable[[Item], Result | Failure],
    items: Iterable[Item],
    runner: str,
    workers: int | None,
    time_limit: float | None,
) -> Iterator[tuple[Item, Result | Failure]]:
    crew = make_crew(runner, call, workers)
    try:
        schedule = Schedule(crew, time_limit)
        try:
            yield from schedule.run(items)
        finally:
            schedule.close()
    finally:
        crew.close()
