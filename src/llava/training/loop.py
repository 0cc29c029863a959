"""The steps of a run: batches, updates, metrics, checkpoints, stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ...metrics import MetricWriter
from ..data.failures import FailureLog
from .checkpoints import save_checkpoint
from .command import StopSignal
from .config import LlavaTrainConfig
from .optim import rate_factor, set_rates
from .step import Counts, seed_step, train_step

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    from ..data.dataset import Batch


class Loop:
    """Trains from the step that a run is at to its last.

    Args:
      config: the run.
      workdir: its folder.
      accelerator: of the run.
      model: not wrapped; wrapped: for the processes.
      optimizer: prepared.
      about: what each checkpoint says beside its step.
      earlier: state.json of the checkpoint that the run goes on from; {} for a new run.
      total_steps: length of the run.
    """

    def __init__(
        self,
        config: LlavaTrainConfig,
        workdir: Path,
        accelerator: Accelerator,
        model: nn.Module,
        wrapped: nn.Module,
        optimizer: AcceleratedOptimizer,
        about: Mapping[str, Any],
        earlier: Mapping[str, Any],
        total_steps: int,
    ) -> None:
        self._config, self._workdir, self._accelerator = config, workdir, accelerator
        self._model, self._wrapped, self._optimizer = model, wrapped, optimizer
        self._about, self._total_steps = about, total_steps
        self.start_step = earlier.get("step", 0)
        self._seen, self._failed = earlier.get("seen", 0), earlier.get("failed", 0)
        self._nan_steps, self._nan_in_row = earlier.get("nan_steps", 0), 0
        world, rank = accelerator.num_processes, accelerator.process_index
        self._failures = FailureLog(
            workdir / "failures" / f"process-{rank:03d}.jsonl",
            config.max_failures,
            self._seen // world,
            self._failed // world,
        )
        self._writer = MetricWriter(
            workdir,
            total_steps,
            self.start_step,
            active=accelerator.is_main_process,
            wandb_project=config.wandb_project,
            config=config.to_dict(),
        )

    def note(self, text: str) -> None:
        """One line of narration on the terminal."""
        self._writer.note(text)

    def run(self, steps: Iterator[list[Batch]], stop: StopSignal) -> tuple[bool, dict[str, float]]:
        """Trains.

        Args:
          steps: this process' micro-batches of each step from `start_step` on.
          stop: asks the run to end after the step that it is at.

        Returns:
          Whether the last step is done, and the metrics that were written last.

        Raises:
          ValueError: loss or gradient are not finite for too long.
          TooManyFailures: too many rows cannot be used.
        """
        metrics: dict[str, float] = {}
        rates = Rates()
        try:
            # The range first: it ends without taking another step's batches.
            for step, batches in zip(
                range(self.start_step, self._total_steps), steps, strict=False
            ):
                rates.waited()
                counts = Counts.of(batches, stop.received, self._accelerator)
                self._seen, self._failed = self._seen + counts.seen, self._failed + counts.failed
                failed = [failure for batch in batches for failure in batch.failures]
                self._failures.add(failed, sum(batch.seen for batch in batches))

                found = self._step(step, batches, counts)
                rates.add(counts)
                last, stopped = step + 1 == self._total_steps, counts.stops > 0
                if (step + 1) % self._config.log_steps == 0 or last or stopped:
                    metrics = found | rates.take()
                    self._writer.write(step + 1, metrics)
                if (step + 1) % self._config.checkpoint.every_steps == 0 or last or stopped:
                    self._save(step + 1)
                if stopped and not last:
                    self.note(f"SIGTERM: saved step {step + 1}, stopping")
                    return False, metrics
        finally:
            self._writer.close()
        return True, metrics

    def _step(self, step: int, batches: list[Batch], counts: Counts) -> dict[str, float]:
        config, process = self._config, self._accelerator.process_index
        rates = set_rates(self._optimizer, rate_factor(config.optim, step, self._total_steps))
        seed_step(config.seed, step, process)
        loss, norm, fusion = train_step(
            self._wrapped,
            self._optimizer,
            batches,
            max(counts.supervised, 1),
            config.optim.clip_norm,
            self._accelerator,
            self._model.config.weighted,
        )
        finite = math.isfinite(loss) and math.isfinite(norm)
        self._nan_in_row = 0 if finite else self._nan_in_row + 1
        self._nan_steps += not finite
        if self._nan_in_row >= config.max_nan_steps:
            raise ValueError(
                f"step {step + 1}: loss or gradient not finite for {self._nan_in_row} steps in a "
                f"row (config.max_nan_steps = {config.max_nan_steps}); the weights are those of "
                "the last finite step. Lower config.optim.lr, or lengthen config.optim.warmup"
            )
        found = {"train/loss": loss, "train/grad_norm": norm, "train/nan_steps": self._nan_steps}
        found |= {f"train/lr/{part}": rate for part, rate in rates.items()}
        found |= {f"train/fusion/{encoder}": weight for encoder, weight in fusion.items()}
        return found | {"data/failures": self._failed, "data/supervised_tokens": counts.supervised}

    def _save(self, step: int) -> None:
        save_checkpoint(
            self._workdir,
            self._model,
            self._optimizer.optimizer,
            {
                "step": step,
                "seen": self._seen,
                "failed": self._failed,
                "nan_steps": self._nan_steps,
                **self._about,
            },
            self._config.checkpoint.keep,
            writes=self._accelerator.is_main_process,
        )


class Rates:
    """What goes through the run per second, over all processes."""

    def __init__(self) -> None:
        self._restart()

    def waited(self) -> None:
        """A step's batches are there: the time since the last step went by waiting."""
        self._wait += time.perf_counter() - self._mark

    def add(self, counts: Counts) -> None:
        """A step is done."""
        self._sums.add(counts)
        self._steps += 1
        self._mark = time.perf_counter()

    def take(self) -> dict[str, float]:
        """Rates since the last call."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        used = self._sums.seen - self._sums.failed
        found = {
            "perf/step_seconds": seconds / max(self._steps, 1),
            "perf/samples_per_second": used / seconds,
            "perf/tokens_per_second": self._sums.tokens / seconds,
            "perf/visual_tokens_per_second": self._sums.visual / seconds,
            "perf/input_wait": self._wait / seconds,
        }
        self._restart()
        return found

    def _restart(self) -> None:
        self._start = self._mark = time.perf_counter()
        self._sums, self._steps, self._wait = Counts(), 0, 0.0
