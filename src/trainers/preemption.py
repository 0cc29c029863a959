"""Stopping well: SIGTERM, and runs that are not worth going on with."""

from __future__ import annotations

import signal
from typing import Any

import jax
from jax.experimental import multihost_utils

from .run_config import RunConfig


class TrainingStopped(Exception):
    """A run ends itself because going on would waste time or spoil the model."""


class StopSignal:
    """SIGTERM of any process makes all of them stop at the same step."""

    def __init__(self) -> None:
        self._received = False
        self._earlier = None
        # With several processes jax.distributed owns the signal and agrees on a common step.
        if jax.process_count() == 1:
            self._earlier = signal.signal(signal.SIGTERM, self._receive)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; every process asks once per step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def close(self) -> None:
        if self._earlier is not None:
            signal.signal(signal.SIGTERM, self._earlier)

    def _receive(self, *_: Any) -> None:
        self._received = True


def check_health(
    config: RunConfig, step: int, nan_steps_in_row: int, bad_records: int, details: str
) -> None:
    """Stops a run that no longer trains, or that reads damaged data; all processes alike.

    Args:
      config: the limits.
      step: number of steps done.
      nan_steps_in_row: steps without a finite loss and gradient up to this one.
      bad_records: rows of unreadable records so far.
      details: the sources' losses of this step and what was not finite, for the message.

    Raises:
      TrainingStopped: a limit is passed.
    """
    if nan_steps_in_row >= config.max_nan_steps:
        raise TrainingStopped(
            f"step {step}: loss or gradient not finite for {nan_steps_in_row} steps in a row "
            f"(config.max_nan_steps = {config.max_nan_steps}; {details}); the state is that "
            "of the last finite step. Lower config.optim.lr or lengthen config.optim.warmup_steps"
        )
    if bad_records > config.max_bad_records:
        raise TrainingStopped(
            f"step {step}: {bad_records} rows of unreadable records so far, each record counted "
            f"again in each epoch (config.max_bad_records = {config.max_bad_records}); they are "
            "named in WORKDIR/logs: pack the set again, or raise the limit"
        )
