"""A window of steps recorded by jax.profiler, and the memory that the devices have used."""

from __future__ import annotations

from typing import Any

import jax

from ..files import PathOrUrl, join
from ..mirror import Mirror
from .run_config import ProfileConfig

FOLDER = "profile"


class ProfileWindow:
    """Records steps `start_step` to `start_step + num_steps - 1` into WORKDIR/profile.

    TensorBoard's profile plugin and https://ui.perfetto.dev open the trace.
    """

    def __init__(self, config: ProfileConfig, workdir: PathOrUrl) -> None:
        self._config, self._place = config, join(workdir, FOLDER)
        self._mirror: Mirror | None = None

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
