"""The loop of a run: a batch, a step, numbers, an evaluation, a checkpoint; and again."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from .. import __version__
from ..files import PathOrUrl
from ..metrics import MetricWriter, Throughput
from . import heartbeat
from . import mesh as meshes
from .checkpoints import Checkpoints
from .flops import peak_tflops
from .nan_steps import NanSteps
from .preemption import StopSignal, check_health
from .profiling import ProfileWindow, memory_peak_gib
from .run_config import RunConfig
from .sources import Sources, on_device
from .stamp import code_stamp
from .update import State

_LOG = logging.getLogger(__name__)
Step = Callable[[State, Any], tuple[State, dict[str, jax.Array]]]


class Loop:
    """Trains a state from the step it is at to the last.

    Args:
      config: the run.
      workdir: its folder or URL.
      mesh: the mesh, which is set.
      sources: the data.
      checkpoints: where the state is saved.
      state: what is trained; its buffers are given away.
      work: step -> `samples`, `tokens`, `flops` of that step over all devices, and a dict
        `source_tokens`.
      evaluate: (step, state) -> metrics to write; called at step 0 and after each step.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: PathOrUrl,
        mesh: Mesh,
        sources: Sources,
        checkpoints: Checkpoints,
        state: State,
        work: Callable[[int], dict[str, Any]],
        evaluate: Callable[[int, State], dict[str, float]],
    ) -> None:
        self._config, self._mesh = config, mesh
        self._sources, self._checkpoints = sources, checkpoints
        self._state, self._start_step = state, int(state["step"])
        self._work, self._evaluate = work, evaluate
        self._code = code_stamp()
        self._stop = StopSignal()
        self._steps = range(self._start_step + 1, config.total_steps + 1)
        self._profile = ProfileWindow(config.profile, workdir, self._steps)
        self._nan_steps = NanSteps(int(state["nan_steps"]))
        self._peak = config.peak_tflops or peak_tflops(jax.devices()[0])
        self._writer = MetricWriter(
            workdir,
            config.total_steps,
            self._start_step,
            active=jax.process_index() == 0,
            wandb_project=config.wandb_project,
            config=config.to_dict(),
        )

    def note(self, text: str) -> None:
        """One line of narration on the terminal."""
        self._writer.note(text)

    def run(self, train_step: Step) -> dict[str, float]:
        """Trains, and closes everything that belongs to the run.

        Args:
          train_step: compiled, (state, batches) -> (state, metrics).

        Returns:
          The metrics that were written last.

        Raises:
          TrainingStopped: too many non-finite steps or unreadable records.
          SaveFailed: a checkpoint could not be written.
        """
        with contextlib.ExitStack() as parts:  # each is closed, whatever the others raise
            for part in (self._stop, self._writer, self._checkpoints, self._sources, self._profile):
                parts.callback(part.close)
            return self._run(train_step)

    def _run(self, train_step: Step) -> dict[str, float]:
        config, state, metrics = self._config, self._state, {}
        heartbeat.enter("starting", config.total_steps, self._start_step)
        if self._start_step == 0:
            self._report(0, state)
        throughput = Throughput()
        for step in self._steps:
            # The next batch is asked for only after the save below, so that the data position in a
            # checkpoint is that of the batches its state has seen. Do not reorder.
            heartbeat.enter("data")
            asked = time.perf_counter()
            rows = self._sources.next(step)
            throughput.waited(time.perf_counter() - asked)
            heartbeat.enter("step")
            batches = {n: meshes.put_batch(on_device(b), self._mesh) for n, b in rows.items()}

            with self._profile.begin(step):
                state, step_metrics = train_step(state, batches)
            self._profile.end(step, state)
            self._nan_steps.stepped(step, step_metrics)

            last = step == config.total_steps
            if step % config.log_steps == 0 or last:
                metrics = self._log(step, state, step_metrics, throughput)
            elif step == self._steps[0]:
                jax.block_until_ready(step_metrics)
                throughput.restart()  # this step has compiled
            heartbeat.stepped(step)
            if self._stop.reached(step) and not last:
                self._save(step, state)
                self._writer.note(f"SIGTERM: saved step {step}, stopping")
                break
            # Before the save: a run that is killed while it evaluates does the step again.
            if self._report(step, state):
                throughput.restart()
            if step % config.checkpoint.every_steps == 0 or last:
                self._save(step, state)
        if config.total_steps == 0:
            self._save(0, state)
        return metrics

    def _report(self, step: int, state: State) -> bool:
        """Whether there was something to evaluate at this step."""
        heartbeat.enter("evaluation")
        if found := self._evaluate(step, state):
            self._writer.write(step, found)
        return bool(found)

    def _save(self, step: int, state: State) -> None:
        heartbeat.enter("checkpoint")
        about = {"config": self._config.to_dict(), "version": __version__, "code": self._code}
        self._checkpoints.save(step, state, {**about, "data": self._sources.get_state()})

    def _log(
        self,
        step: int,
        state: State,
        step_metrics: dict[str, jax.Array],
        throughput: Throughput,
    ) -> dict[str, float]:
        found = {f"train/{key}": float(value) for key, value in step_metrics.items()}
        work = self._work(step)
        by_source = work.pop("source_tokens")
        found |= throughput.rates(**work, devices=self._mesh.size, peak_tflops=self._peak)
        for name, tokens in by_source.items():
            found[f"perf/{name}/tokens_per_second"] = tokens / found["perf/step_seconds"]
        for name, counts in self._sources.taken().items():
            # Of a mixture only: otherwise the step tells.
            found |= {f"data/{name}/set{i}": n for i, n in enumerate(counts) if len(counts) > 1}
        for name, counts in self._sources.counts().items():
            found |= {f"data/{name}/{key}": float(count) for key, count in counts.items()}
        if (gib := memory_peak_gib()) is not None:
            found["perf/memory_peak_gib"] = gib
        for counter in ("nan_steps", "bad_records"):
            found[f"train/{counter}"] = float(state[counter])
        found["train/loss_spikes"] = float(state["loss_spikes"]["spikes"])
        self._writer.write(step, found)
        losses = ", ".join(f"{name} {found[f'train/{name}/loss']:.4g}" for name in by_source)
        told = self._nan_steps.look(int(state["nan_steps"]))
        if told:
            _LOG.warning("steps that are not finite change nothing: %s", told)
        nan_steps, bad = int(state["nan_steps_in_row"]), int(state["bad_records"])
        check_health(self._config, step, nan_steps, bad, f"losses: {losses}; {told}")
        return found
