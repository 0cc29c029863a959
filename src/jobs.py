"""Many files at once: the same results, in order, from one process, from many, and from Ray.

A worker that crashes or takes too long costs one item. It knows nothing of videos: a job is a
function of one item.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from .runners import RUNNERS, Answer, Crew, Worker, WorkerDied, make_crew

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOOK_AHEAD = 8  # items per worker: a slow one at the front must not leave the others without work
_FAILED_STARTS = 3  # in a row, beyond one per worker


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why an item gave no result: the kind of error and its message."""

    kind: str
    reason: str


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
        schedule = _Schedule(crew, time_limit)
        try:
            yield from schedule.run(items)
        finally:
            schedule.close()
    finally:
        crew.close()


@dataclasses.dataclass(eq=False)
class _Task(Generic[Item]):
    item: Item
    attempts: int = 0
    outcome: Any = None
    finished: bool = False

    def finish(self, outcome: Any) -> None:
        self.outcome, self.finished = outcome, True


class _Schedule:
    """Who does what: hands items to workers and puts the outcomes in order."""

    def __init__(self, crew: Crew, time_limit: float | None) -> None:
        self._crew, self._time_limit = crew, time_limit
        self._waiting: collections.deque[_Task] = collections.deque()
        self._idle: list[Worker] = []
        self._starting: set[Worker] = set()
        self._busy: dict[Worker, tuple[_Task, float]] = {}  # what it does and until when it may
        self._failed_starts = 0

    def run(self, items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
        rest = iter(items)
        window: collections.deque[_Task] = collections.deque()
        while True:
            free = _LOOK_AHEAD * self._crew.size - len(window)
            for item in itertools.islice(rest, free):
                task = _Task(item)
                window.append(task)
                self._waiting.append(task)
            if not window:
                return
            self._assign()
            if window[0].finished:
                task = window.popleft()
                yield task.item, task.outcome
            else:
                self._wait()

    def close(self) -> None:
        for worker in [*self._starting, *self._busy]:
            worker.kill()
        for worker in self._idle:
            worker.dismiss()

    def _assign(self) -> None:
        while self._waiting and self._idle:
            self._send(self._idle.pop(), self._waiting.popleft())
        team = len(self._starting) + len(self._busy) + len(self._idle)
        # After the loop above either nothing waits or nobody is idle.
        wanted = min(len(self._waiting) - len(self._starting), self._crew.size - team)
        for _ in range(wanted):
            self._starting.add(self._crew.start())

    def _send(self, worker: Worker, task: _Task) -> None:
        limit = math.inf if self._time_limit is None else self._time_limit
        self._busy[worker] = (task, time.monotonic() + limit)
        try:
            worker.send(task.item)
        except WorkerDied:  # before it had the item, which is not to blame
            del self._busy[worker]
            worker.kill()
            self._waiting.appendleft(task)

    def _wait(self) -> None:
        """Takes what has arrived; then ends the workers that are over their time."""
        deadline = min((until for _, until in self._busy.values()), default=math.inf)
        timeout = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
        for worker in self._crew.wait([*self._starting, *self._busy], timeout):
            try:
                self._take(worker, worker.receive())
            except WorkerDied as error:
                self._bury(worker, error)
        now = time.monotonic()
        for worker in [worker for worker, (_, until) in self._busy.items() if until <= now]:
            task, _ = self._busy.pop(worker)
            worker.kill()
            reason = f"took longer than {self._time_limit:g} s (--time-limit)"
            task.finish(Failure("TimeLimit", reason))

    def _take(self, worker: Worker, answer: Answer) -> None:
        if worker in self._starting:
            self._starting.remove(worker)
            self._failed_starts = 0
        else:
            task, _ = self._busy.pop(worker)
            task.finish(answer.value)
        self._idle.append(worker)
        if answer.error is not None:
            raise answer.error

    def _bury(self, worker: Worker, error: WorkerDied) -> None:
        worker.kill()
        if worker in self._starting:
            self._starting.remove(worker)
            self._failed_starts += 1
            if self._failed_starts >= self._crew.size + _FAILED_STARTS:
                raise RuntimeError(
                    f"{self._failed_starts} worker processes in a row ended before they could "
                    f"start: see their error above ({error})"
                )
            return
        task, _ = self._busy.pop(worker)
        task.attempts += 1
        if task.attempts > 1:
            task.finish(Failure("WorkerDied", "the process that worked on it died twice"))
        else:
            self._waiting.appendleft(task)
