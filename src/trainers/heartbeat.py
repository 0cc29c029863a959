"""What a process of a run is doing, told every few seconds: WORKDIR/heartbeats/process-NNNNN.json.

`codecvit watch` reads these files (watch.py). The trainers say where they are by `enter`, which
costs nothing worth mentioning; a thread writes. This file imports no jax.

A heartbeat is a JSON object: `beat`, a counter by which a reader sees that the process lives,
whatever the clocks of two machines say; `run`, shared by the processes of one start; `host`, `pid`,
`process`, `processes`; `phase` and `phase_seconds`; `step`, `total_steps`, `rate` (steps a second
over the last minute), `since_step` (seconds since the last step, null before the first of this
start); `last_step`, `started`, `time` (of the host's clock, seconds of 1970); `every` (seconds
between beats); `problem` (the last warning or error, or "").
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from ..files import is_url, join, make_folder, write_atomic

FOLDER = "heartbeats"
# How often; an object store takes longer, and counts writes.
LOCAL_SECONDS, REMOTE_SECONDS = 5.0, 10.0
RUNNING = ("starting", "evaluation", "checkpoint", "data", "step")
"""Phases in which a process works, in their order after a step; "data" waits for the next batch."""
ENDED = ("done", "stopped", "failed")

_WINDOW_SECONDS = 60.0
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class Progress:
    """Where this process is. Times are of `time.monotonic`."""

    phase: str = "starting"
    step: int = 0
    total_steps: int | None = None
    problem: str = ""
    phase_began: float = dataclasses.field(default_factory=time.monotonic)
    stepped: float | None = None


_progress = Progress()


def enter(phase: str, total_steps: int | None = None, step: int | None = None) -> None:
    """Says what this process does from now on.

    Args:
      phase: one of `RUNNING`.
      total_steps: steps of the whole run, told once.
      step: told with total_steps, the number of steps that were done before this start.
    """
    _progress.phase, _progress.phase_began = phase, time.monotonic()
    if total_steps is not None:
        _progress.total_steps, _progress.step = total_steps, step or 0


def stepped(step: int) -> None:
    """Says that step number `step` is done."""
    _progress.step, _progress.stepped = step, time.monotonic()


@contextlib.contextmanager
def beating(
    workdir: str, run: str, process: int, processes: int, every: float | None = None
) -> Iterator[None]:
    """Writes heartbeats while the run lasts, and how it ended.

    Args:
      workdir: folder or URL of the run.
      run: identity of this start, the same in all processes.
      process, processes: this one's number, and how many there are.
      every: seconds between two; by default what suits the place.

    Raises:
      OSError: the first heartbeat cannot be written. Later ones may fail: that is a warning.
    """
    global _progress
    _progress = Progress()
    heart = _Heart(workdir, run, process, processes, every)
    handler = _LastProblem(logging.WARNING)
    logging.getLogger("codecvit").addHandler(handler)
    heart.start()
    try:
        yield
    except BaseException as error:
        _progress.problem = f"{type(error).__name__}: {_first_line(str(error))}"
        heart.stop("failed")
        raise
    else:
        whole = _progress.total_steps is None or _progress.step >= _progress.total_steps
        heart.stop("done" if whole else "stopped")
    finally:
        logging.getLogger("codecvit").removeHandler(handler)


def beat_url(workdir: str, process: int) -> str:
    """The heartbeat file of a process."""
    return join(workdir, FOLDER, f"process-{process:05d}.json")


class _Heart:
    """The thread, and what it remembers between two beats."""

    def __init__(
        self, workdir: str, run: str, process: int, processes: int, every: float | None
    ) -> None:
        make_folder(join(workdir, FOLDER))
        self._url = beat_url(workdir, process)
        self._every = every or (REMOTE_SECONDS if is_url(workdir) else LOCAL_SECONDS)
        self._about = {
            "run": run,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": process,
            "processes": processes,
            "every": self._every,
            "started": round(time.time(), 3),
        }
        self._beats, self._failed = 0, False
        self._window: collections.deque[tuple[float, int]] = collections.deque()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._beat()
        self._thread.start()

    def stop(self, phase: str) -> None:
        """The last beat says how the run ended."""
        self._end.set()
        self._thread.join(timeout=2 * self._every)  # a remote folder may not answer
        enter(phase)
        self._try_beat()

    def _run(self) -> None:
        while not self._end.wait(self._every):
            self._try_beat()

    def _try_beat(self) -> None:
        try:
            self._beat()
        except (OSError, ValueError) as error:
            if not self._failed:  # once, not every five seconds
                _LOG.warning("heartbeats cannot be written: %s", error)
            self._failed = True
        else:
            self._failed = False

    def _beat(self) -> None:
        self._beats += 1
        content = {"beat": self._beats, **self._about, **self._now()}
        write_atomic(self._url, (json.dumps(content, indent=1) + "\n").encode())

    def _now(self) -> dict[str, Any]:
        at, now = dataclasses.replace(_progress), time.monotonic()
        since = None if at.stepped is None else now - at.stepped
        return {
            "phase": at.phase,
            "phase_seconds": round(now - at.phase_began, 1),
            "step": at.step,
            "total_steps": at.total_steps,
            "rate": self._rate(at),
            "since_step": None if since is None else round(since, 1),
            "last_step": None if since is None else round(time.time() - since, 3),
            "time": round(time.time(), 3),
            "problem": at.problem,
        }

    def _rate(self, at: Progress) -> float | None:
        """Steps a second over the last minute; the first step, which compiles, is left out."""
        now = time.monotonic()
        if at.stepped is None:
            return None
        # The first point is a step; later ones are beats, so that a run that stands still slows.
        self._window.append((now if self._window else at.stepped, at.step))
        while len(self._window) > 2 and now - self._window[1][0] > _WINDOW_SECONDS:
            self._window.popleft()
        (begin, first), (end, last) = self._window[0], self._window[-1]
        return round((last - first) / (end - begin), 4) if end > begin else None


class _LastProblem(logging.Handler):
    """Keeps the last warning of the package for the heartbeat."""

    def emit(self, record: logging.LogRecord) -> None:
        _progress.problem = f"{record.levelname}: {_first_line(record.getMessage())}"


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:300]
