"""Judges the workers of a run by their heartbeats: who is missing, who is stalled, who waits.

Times are of the watcher's `time.monotonic`; what a heartbeat tells is in seconds that have passed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .heartbeat import ENDED, RUNNING

HEALTHY = ("ok", "done", "stopped")
GRACE_SECONDS = 5.0  # beyond three heartbeats, before a worker is missing

Beat = Mapping[str, Any]


@dataclasses.dataclass
class Worker:
    """What is known of one process.

    Attributes:
      beat: its last heartbeat in the run that is watched, None before there is one.
      changed: when its counter was last seen to move, or it was first looked for; seconds of the
        watcher's `time.monotonic`.
      alive: the counter has moved since the watch began.
    """

    beat: Beat | None
    changed: float
    alive: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """One worker as the table shows it; `state` is one of HEALTHY, waits, stalled, missing, failed.

    `quiet` is the time since the last sign of life in seconds, None where none is awaited.
    """

    process: int
    host: str
    step: int
    rate: float | None
    phase: str
    quiet: float | None
    state: str
    text: str = ""


def judge(workers: Mapping[int, Worker], now: float, stall: float) -> list[Row]:
    """What state each worker is in, and who is to blame.

    Args:
      workers: by process number.
      now: of the clock of `Worker.changed`.
      stall: seconds without a step, or in "data", after which a worker counts as stalled. The first
        step compiles and is not judged, nor are evaluations and checkpoints that all are in.

    Returns:
      A row per worker, in order. Where some have not stepped for so long, those that are furthest
      behind are stalled, and the others wait; where one is missing or has failed, all others wait.
    """
    lost = {p for p, worker in workers.items() if is_lost(worker, now, workers)}
    failed = {p for p, w in workers.items() if w.beat and w.beat["phase"] == "failed"}
    going = {p: w for p, w in workers.items() if w.beat and p not in lost and not is_ended(w)}
    late = {p for p, worker in going.items() if _idle(worker, now) > stall}
    rank = {p: (w.beat["step"], RUNNING.index(w.beat["phase"])) for p, w in going.items()}
    behind = {p for p in going if rank[p] == min(rank.values())} if late else set()
    rows = []
    for process, worker in sorted(workers.items()):
        beat = worker.beat or {}
        state, text = "ok", ""
        if process in lost:
            state, text = "missing", _missing(worker, now)
        elif not beat:
            text = "no heartbeat yet"
        elif beat["phase"] in ENDED:
            state = beat["phase"]
        elif process in behind and not lost and not failed:
            state, text = "stalled", _stalled(worker, now, len(going) - len(behind))
        elif process in late:
            state = "waits"
        if beat.get("problem"):
            text = f"{text}; {beat['problem']}" if text else beat["problem"]
        rows.append(
            Row(
                process,
                beat.get("host", "?"),
                beat.get("step", 0),
                beat.get("rate"),
                _phase(worker, now),
                now - worker.changed if worker.alive and not is_ended(worker) else None,
                state,
                text,
            )
        )
    return rows


def healthy(rows: Sequence[Row]) -> bool:
    """Whether no worker is missing, stalled, waiting or failed."""
    return all(row.state in HEALTHY for row in rows)


def is_ended(worker: Worker) -> bool:
    """Whether it has told its end."""
    return worker.beat is not None and worker.beat["phase"] in ENDED


def is_lost(worker: Worker, now: float, workers: Mapping[int, Worker]) -> bool:
    """Whether it should have beaten several times since it was last seen to."""
    every = max((w.beat["every"] for w in workers.values() if w.beat), default=0.0)
    return not is_ended(worker) and now - worker.changed > 3 * every + GRACE_SECONDS


def _phase(worker: Worker, now: float) -> str:
    if worker.beat is None:
        return "-"
    seconds = worker.beat["phase_seconds"] + now - worker.changed
    phase = worker.beat["phase"]
    return f"{phase} {seconds:.0f} s" if phase in RUNNING and seconds >= 10 else phase


def _idle(worker: Worker, now: float) -> float:
    """Seconds that a worker has waited for data, or for a step to end."""
    beat = worker.beat
    assert beat is not None
    seconds = {"data": beat["phase_seconds"], "step": beat["since_step"]}.get(beat["phase"])
    return 0.0 if seconds is None else seconds + now - worker.changed


def _missing(worker: Worker, now: float) -> str:
    quiet = f"no heartbeat for {now - worker.changed:.0f} s"
    if worker.beat is None:
        return f"{quiet}, and none before"
    phase, step = worker.beat["phase"], worker.beat["step"]
    return f"{quiet}, last in {phase} at step {step}: killed, stopped or cut off"


def _stalled(worker: Worker, now: float, waiting: int) -> str:
    beat = worker.beat
    assert beat is not None
    seconds = beat["phase_seconds"] + now - worker.changed
    text = f"in {beat['phase']} for {seconds:.0f} s at step {beat['step']}"
    if waiting:
        return f"{text}, {waiting} other(s) wait for it"
    return f"{text}, as all are"
