"""Many files at once: a process pool that gives results in order and survives a crashing worker.

It knows nothing of videos: a job is a function of one item.
"""

from __future__ import annotations

import collections
import dataclasses
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why an item gave no result: the kind of error and its message."""

    kind: str
    reason: str


def shard_plan(count: int, per_shard: int) -> list[range]:
    """Splits `count` places into the fewest shards of at most `per_shard`, of nearly equal size.

    Args:
      count: number of items, in key order.
      per_shard: most items that one shard covers.

    Returns:
      One range of places per shard. It depends on nothing else, so any number of workers writes the
      same shards.
    """
    if per_shard < 1:
        raise ValueError(f"records per shard = {per_shard} must be at least 1")
    shards = -(-count // per_shard)
    return [range(i * count // shards, (i + 1) * count // shards) for i in range(shards)]


def run_jobs(
    fn: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    expected: tuple[type[Exception], ...] = (ValueError, OSError),
) -> Iterator[tuple[Item, Result | Failure]]:
    """Calls `fn(item)` for every item and yields the results in the order of the items.

    A worker process that dies (a crash in a native library, out of memory) costs at most its own
    item: the items that were under way run once more, each alone in a fresh pool, and the one that
    kills its worker again is a Failure. At most a few results per worker are held, however many
    items there are.

    Args:
      fn: a function of a module (it is sent to other processes by name), with picklable item and
        result.
      items: what to call it with.
      workers: number of processes; 0 runs everything in this one.
      expected: errors that belong to an item and become a Failure; any other error is a bug and is
        raised.

    Yields:
      (item, result or Failure).

    Raises:
      ValueError: `workers` is negative.
    """
    if workers < 0:
        raise ValueError(f"workers = {workers} must be 0 or more")
    if workers == 0:
        for item in items:
            yield item, _call(fn, item, expected)
        return
    pool = _Pool(fn, workers, expected)
    try:
        yield from pool.run(items)
    finally:
        pool.close()


def _call(
    fn: Callable[[Item], Result], item: Item, expected: tuple[type[Exception], ...]
) -> Result | Failure:
    try:
        return fn(item)
    except expected as error:
        return Failure(type(error).__name__, str(error))


class _Pool(Generic[Item, Result]):
    """A process pool that is replaced when a worker dies."""

    def __init__(
        self, fn: Callable[[Item], Result], workers: int, expected: tuple[type[Exception], ...]
    ) -> None:
        self._fn, self._workers, self._expected = fn, workers, expected
        self._executor = self._start(workers)

    def run(self, items: Sequence[Item]) -> Iterator[tuple[Item, Result | Failure]]:
        lookahead = 3 * self._workers
        under_way: collections.deque[tuple[Item, Future]] = collections.deque()
        rest = iter(items)
        while True:
            for item in rest:
                under_way.append((item, self._submit(item)))
                if len(under_way) >= lookahead:
                    break
            if not under_way:
                return
            item, future = under_way[0]
            try:
                result = future.result()
            except BrokenProcessPool:
                yield from self._one_by_one(list(under_way))
                under_way.clear()
                continue
            under_way.popleft()
            yield item, result

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _one_by_one(
        self, under_way: list[tuple[Item, Future]]
    ) -> Iterator[tuple[Item, Result | Failure]]:
        """Finds the item that kills its worker: what arrived is kept, the others run alone."""
        self.close()
        self._executor = self._start(1)
        for item, future in under_way:
            if not future.cancelled() and future.exception() is None:
                yield item, future.result()
                continue
            try:
                yield item, self._submit(item).result()
            except BrokenProcessPool:
                self.close()
                self._executor = self._start(1)
                yield item, Failure("WorkerDied", "the process that worked on it died twice")
        self.close()
        self._executor = self._start(self._workers)

    def _submit(self, item: Item) -> Future:
        try:
            return self._executor.submit(_call, self._fn, item, self._expected)
        except BrokenProcessPool as error:
            # A worker died between two calls: the caller meets it when it waits for this item.
            future: Future = Future()
            future.set_exception(error)
            return future

    def _start(self, workers: int) -> ProcessPoolExecutor:
        # Spawned, not forked: a fork copies the locks of running threads (decoders, readers) in any
        # state.
        return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
