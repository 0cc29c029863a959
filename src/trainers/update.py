"""What every training step does with a gradient: update, average, count, and skip what is not
finite.

The state of a run is a dict: `params` (`encoder`, and what is trained beside it), `opt_state`,
with a moving average `ema`, and the counters of `init_counters`; a trainer may add entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .loss_spikes import init_spikes, update_spikes
from .run_config import RunConfig

State = dict[str, Any]
Batches = Mapping[str, Mapping[str, jax.Array]]


def init_run_state(
    config: RunConfig, params: dict[str, Any], optimizer: optax.GradientTransformation
) -> State:
    """The state of a run at step 0."""
    zero = jnp.zeros((), jnp.int32)
    state = {
        "params": params,
        "opt_state": optimizer.init(params),
        "loss_spikes": init_spikes(),
        "step": zero,
        "nan_steps": zero,
        "nan_steps_in_row": zero,
        "bad_records": zero,
    }
    if config.ema.enabled:
        state["ema"] = params["encoder"]
    return state


def apply_gradient(
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    state: State,
    batches: Batches,
    loss: jax.Array,
    grads: dict[str, Any],
) -> tuple[State, dict[str, jax.Array]]:
    """One optimiser step; one whose loss or gradient is not finite changes only the counters.

    Args:
      config: the run.
      optimizer: what `state["opt_state"]` belongs to.
      state: before the step.
      batches: of every source; `weight` 0 marks a row that could not be read.
      loss, grads: the loss and its gradient, shaped as `state["params"]`.

    Returns:
      The state after the step, and the metrics `loss` and `grad_norm/PART`.
    """
    updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
    new = {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}
    if config.ema.enabled:
        new["ema"] = optax.incremental_update(
            new["params"]["encoder"], state["ema"], 1 - config.ema.decay
        )
    norms = {name: optax.tree.norm(part) for name, part in parts_of(grads).items()}
    finite = jnp.isfinite(loss) & jnp.isfinite(sum(norms.values()))
    old = {key: state[key] for key in new}
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    bad = (~finite).astype(jnp.int32)
    unread = sum(jnp.sum(batch["weight"] == 0, dtype=jnp.int32) for batch in batches.values())
    metrics = {"loss": loss} | {f"grad_norm/{name}": norm for name, norm in norms.items()}
    return state | kept | {
        "loss_spikes": update_spikes(state["loss_spikes"], loss, config.spike_deviations),
        "step": state["step"] + 1,
        "nan_steps": state["nan_steps"] + bad,
        "nan_steps_in_row": (state["nan_steps_in_row"] + 1) * bad,
        "bad_records": state["bad_records"] + unread,
    }, metrics


def parts_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that are trained: the top level of the parameters, each head by itself."""
    parts = {name: part for name, part in params.items() if name != "heads"}
    return parts | {f"head_{name}": head for name, head in params.get("heads", {}).items()}
