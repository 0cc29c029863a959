"""A window of steps recorded by jax.profiler, and the memory that the devices have used."""

from __future__ import annotations

import logging
from typing import Any

import jax

from ..files import PathOrUrl, join
from ..mirror import Mirror
from .run_config import ProfileConfig

FOLDER = "profile"
_LOG = logging.getLogger(__name__)


class ProfileWindow:
    """Records steps `start_step` to `start_step + num_steps - 1` into WORKDIR/profile.

    TensorBoard's profile plugin and https://ui.perfetto.dev open the trace.

    Args:
      config: the window.
      workdir: the run's folder or URL.
      steps: those of this start; a window that begins outside of them is warned of.
    """

    def __init__(self, config: ProfileConfig, workdir: PathOrUrl, steps: range) -> None:
        self._config, self._place = config, join(workdir, FOLDER)
        self._mirror: Mirror | None = None
        if config.num_steps and steps and config.start_step not in steps:
            _LOG.warning(
                "config.profile.start_step = %d is none of the steps %d to %d of this start: "
                "nothing is recorded",
                config.start_step,
                steps[0],
                steps[-1],
            )

    def begin(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """Called before each step; the step runs within what it returns."""
        if self._config.num_steps and step == self._config.start_step:
            self._mirror = Mirror(self._place)
            jax.profiler.start_trace(str(self._mirror.folder))
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def end(self, step: int, result: Any) -> None:
        """Called after each step with an array of its result, which the last of them waits for."""
        if self._mirror and step == self._config.start_step + self._config.num_steps - 1:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a window that is still open."""
        if self._mirror:
            jax.profiler.stop_trace()
            self._mirror.close()
            self._mirror = None


def memory_peak_gib() -> float | None:
    """Largest peak of memory in use on a device of this process, GiB; None where none is told."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    return max(peaks) / 2**30 if peaks else None
