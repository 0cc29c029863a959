"""Who does what: hands items to workers and puts the outcomes in the order of the items."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from .runners import Answer, Crew, Worker, WorkerDied

Item = TypeVar("Item")

_LOOK_AHEAD = 8  # items per worker: a slow one at the front must not leave the others without work
_FAILED_STARTS = 3  # in a row, beyond one per worker


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why an item gave no result: the kind of error and its message."""

    kind: str
    reason: str


@dataclasses.dataclass(eq=False)
class _Task(Generic[Item]):
    item: Item
    attempts: int = 0
    outcome: Any = None
    finished: bool = False

    def finish(self, outcome: Any) -> None:
        self.outcome, self.finished = outcome, True


class Schedule:
    """The items that are under way, and who works on them.

    An item whose worker dies is tried once more and is then a Failure; one that takes too long is a
    Failure at once.

    Args:
      crew: the workers.
      time_limit: seconds that one item may take; None for any time.
    """

    def __init__(self, crew: Crew, time_limit: float | None) -> None:
        self._crew, self._time_limit = crew, time_limit
        self._waiting: collections.deque[_Task] = collections.deque()
        self._idle: list[Worker] = []
        self._starting: set[Worker] = set()
        self._busy: dict[Worker, tuple[_Task, float]] = {}  # what it does and until when it may
        self._failed_starts = 0

    def run(self, items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
        """Yields (item, result or Failure), in order; an error that nobody expects is raised."""
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
        """Ends all workers."""
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
