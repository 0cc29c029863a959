"""XLA's flags in tests, which mostly compile: programs that run once need no good code."""

from __future__ import annotations

import importlib.metadata

# The last two are of jax 0.10, whose compiler refuses flags that it does not know. Fused loops
# emitted one by one are twice the work of plain ones (docs/decisions.md); with the scheduler for
# concurrency, CPU devices on few cores may wait for each other for ever (docs/sharding.md).
_QUICK = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _QUICK += [
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    ]


def xla_flags(devices: int = 1) -> str:
    """The value of XLA_FLAGS for so many CPU devices."""
    return " ".join([*_QUICK, f"--xla_force_host_platform_device_count={devices}"])
