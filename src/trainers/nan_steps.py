"""Which steps were not finite, and what of them: a log line shows its own step alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax

_SHOWN = 5


class NanSteps:
    """Keeps losses and gradient norms of the steps since the last look on the devices.

    They are fetched only if one of these steps was not finite.

    Args:
      counted: non-finite steps of the run so far.
    """

    def __init__(self, counted: int) -> None:
        self._counted = counted
        self._kept: list[tuple[int, dict[str, jax.Array]]] = []

    def stepped(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Keeps what a step's metrics say: `loss`, `SOURCE/loss` and `grad_norm/PART`."""
        kept = {
            name: value
            for name, value in metrics.items()
            if name == "loss" or name.endswith("/loss") or name.startswith("grad_norm/")
        }
        self._kept.append((step, kept))

    def look(self, counted: int) -> str:
        """Names the steps since the last look that were not finite.

        Args:
          counted: non-finite steps of the run by now.

        Returns:
          Such as "step 7: loss of video; step 9: gradient of encoder"; "" if all were finite.
        """
        kept, self._kept = self._kept, []
        if counted == self._counted:
            return ""
        self._counted = counted
        found = [
            f"step {step}: {what}"
            for step, values in jax.device_get(kept)
            if (what := not_finite(values))
        ]
        more = f" (+{len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
        return "; ".join(found[:_SHOWN]) + more


def not_finite(values: Mapping[str, float]) -> str:
    """What is not finite: the losses of these sources, else the gradients of these parts, or ""."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    sources = [name.removesuffix("/loss") for name in bad if name.endswith("/loss")]
    if sources:
        return f"loss of {', '.join(sources)}"
    if "loss" in bad:
        return "sum of the losses"
    parts = [name.removeprefix("grad_norm/") for name in bad]
    return f"gradient of {', '.join(parts)}" if parts else ""
