"""Where a run's numbers go: metrics.jsonl, tensorboard, the terminal."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar

from .files import PathOrUrl, exists, is_url, join, last_name, read_text, write_atomic
from .mirror import Mirror

JSONL = "metrics.jsonl"
WANDB_ID = "wandb_id"
# What a line on the terminal names; the files have everything.
SHOWN = ("train/loss", "train/nan_steps", "perf/samples_per_second", "perf/mfu")
SHOWN += ("probe/", "val/", "test/", "zero_shot/", "retrieval/")
# How many examples an evaluation had: the same every time, unless some could not be read.
COUNTS = ("count", "images", "captions", "unreadable")
FLUSH_SECONDS = 30.0  # of the event file; metrics.jsonl is flushed at every line


class MetricWriter:
    """Writes metrics of the first process; on the others it does nothing.

    Args:
      workdir: the run's folder or URL.
      total_steps: length of the run, for the progress bar.
      start_step: step at which this process starts; lines of later steps, which an interrupted run
        had written after its last checkpoint, are dropped, so that every step stands once.
      active: False on every process but one.
      wandb_project: also log there; "" doesn't.
      config: the resolved configuration, for Weights & Biases.
    """

    def __init__(
        self,
        workdir: PathOrUrl,
        total_steps: int,
        start_step: int = 0,
        active: bool = True,
        *,
        wandb_project: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._active = active
        self._total_steps = total_steps
        self._wandb = None
        self._paced: tuple[float, int] | None = None  # time and step of the first line of training
        if not active:
            return
        if wandb_project:
            self._wandb = start_wandb(wandb_project, workdir, config)
        self._mirror = Mirror(workdir)
        self._mirror.fetch(JSONL)
        self._path = self._mirror.folder / JSONL
        self._truncate(start_step)
        self._file = self._path.open("a")
        self._tensorboard = EventFile(self._mirror.folder / "tensorboard", start_step + 1)
        self._console = Console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=total_steps, completed=start_step)
        self._progress.start()

    def note(self, text: str) -> None:
        """One line of narration."""
        if self._active:
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of one step everywhere.

        Args:
          step: number of steps done.
          values: name -> number, e.g. {"train/codec/loss": 3.2}.
        """
        if not self._active:
            return
        row = {"step": step, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._tensorboard.write(step, values)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)
        self._progress.update(self._task, completed=step)
        parts = [f"{name} {values[name]:.4g}" for name in shown_names(values)]
        if "perf/step_seconds" in values:
            parts.append(f"eta {self._eta(step, values['perf/step_seconds'])}")
        self.note(f"step {step}: " + "  ".join(parts))

    def _eta(self, step: int, step_seconds: float) -> datetime.timedelta:
        """Time to the last step at the pace since the first line, with evaluations and saves."""
        now = time.monotonic()
        if self._paced is None:
            self._paced = now, step
        began, first = self._paced
        pace = (now - began) / (step - first) if step > first else step_seconds
        return datetime.timedelta(seconds=round((self._total_steps - step) * pace))

    def close(self) -> None:
        if self._active:
            if self._wandb is not None:
                self._wandb.finish()
            self._progress.stop()
            self._tensorboard.close()
            self._file.close()
            self._mirror.close()

    def _truncate(self, start_step: int) -> None:
        if not self._path.exists():
            return
        rows = parse_rows(self._path.read_text(), self._path)
        # A run that starts afresh has no row yet, not even those of step 0.
        kept = [row for row in rows if row["step"] <= start_step and start_step > 0]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(self._path)


class EventFile:
    """Scalars in TensorBoard's format, written by the thread that calls.

    tensorboardX's own SummaryWriter leaves that to a thread, which ends at the first failed write:
    after a disk was full for a moment, training waits for ever for room in the thread's queue.

    Args:
      folder: where a new event file is made.
      purge_step: TensorBoard forgets what earlier files say of this step and later ones.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        self._add(purge_step, session_log=SessionLog(status=SessionLog.START))
        self._flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of a step; raises OSError where they cannot be written."""
        parts = [part for name, value in values.items() for part in scalar(name, value).value]
        self._add(step, summary=Summary(value=parts))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def close(self) -> None:
        self._events.close()

    def _add(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **content))

    def _flush(self) -> None:
        self._events.flush()
        self._flushed = time.monotonic()


def shown_names(values: Mapping[str, float]) -> list[str]:
    """Of the metrics of a step those that a line on the terminal names."""
    names = []
    for name in filter(lambda name: name.startswith(SHOWN), values):
        evaluation, _, last = name.rpartition("/")
        if last not in COUNTS or values.get(f"{evaluation}/unreadable"):
            names.append(name)
    return names


def start_wandb(project: str, workdir: PathOrUrl, config: Mapping[str, Any] | None) -> Any:
    """The run of a work directory at Weights & Biases; started again, it is continued.

    Raises:
      ValueError: the package is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"config.wandb_project = {project!r} needs the package wandb: install codecvit[wandb], "
            "or leave the field empty"
        ) from error
    id_file = join(workdir, WANDB_ID)
    if not exists(id_file):
        write_atomic(id_file, uuid.uuid4().hex[:12].encode())
    return wandb.init(
        project=project,
        id=read_text(id_file),
        name=last_name(workdir),
        dir=tempfile.gettempdir() if is_url(workdir) else os.fspath(workdir),
        config=dict(config or {}),
        resume="allow",
    )


def read_metrics(workdir: PathOrUrl) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl.

    Raises:
      ValueError: a line is no row.
    """
    path = join(workdir, JSONL)
    return parse_rows(read_text(path), path)


def parse_rows(text: str, path: PathOrUrl) -> list[dict[str, float]]:
    """The rows of metrics.jsonl; a line that a kill or a full disk has cut short is left out.

    Raises:
      ValueError: another line is no row; the message names the file, which is `path`, and the line.
    """
    rows = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if line.endswith("}\n"):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{os.fspath(path)}, line {number}, is damaged: {error}"
                ) from error
    return rows


class Throughput:
    """Rates between two log lines, and the share of the time spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forgets the steps since the last log line: they are not like the others."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def waited(self, seconds: float) -> None:
        """Counts one step whose batch took `seconds` to arrive."""
        self._waited += seconds
        self._steps += 1

    def rates(
        self, samples: int, tokens: int, flops: float, devices: int, peak_tflops: float
    ) -> dict[str, float]:
        """Rates since the last call or restart.

        Args:
          samples, tokens, flops: of one step over all devices.
          devices: number of devices.
          peak_tflops: peak of one device in TFLOP/s; 0 leaves the MFU out.

        Returns:
          step_seconds, samples/s, tokens/s, TFLOP/s of one device, MFU (0..1), share of time
          waiting for data (0..1).
        """
        seconds = max(time.perf_counter() - self._start, 1e-9)
        per_second = self._steps / seconds
        tflops = flops * per_second / devices / 1e12
        rates = {
            "perf/step_seconds": seconds / max(self._steps, 1),
            "perf/samples_per_second": samples * per_second,
            "perf/tokens_per_second": tokens * per_second,
            "perf/tflops_per_device": tflops,
            "perf/input_wait": self._waited / seconds,
        }
        if peak_tflops:
            rates["perf/mfu"] = tflops / peak_tflops
        self.restart()
        return rates
