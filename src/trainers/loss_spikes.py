"""Counts the steps whose loss jumps out of its recent range."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_MEMORY = 100  # steps that the running mean and deviation look back

SpikeState = dict[str, jax.Array]


def init_spikes() -> SpikeState:
    """The state before the first step: scalars."""
    zero, none = jnp.zeros(()), jnp.zeros((), jnp.int32)
    return {"mean": zero, "variance": zero, "seen": none, "spikes": none}


def update_spikes(state: SpikeState, loss: jax.Array, deviations: float) -> SpikeState:
    """Counts a spike if the loss lies more than `deviations` standard deviations above the mean.

    Mean and variance are exponential averages over some 100 steps (Finch 2009, "Incremental
    calculation of weighted mean and variance"); nothing counts before they have seen that many. A
    spike enters them as if it lay at the limit: it does not hide the next one, and a lasting change
    becomes the new normal after a while. A loss that is not finite does not enter.
    """
    mean, variance, seen = state["mean"], state["variance"], state["seen"]
    finite = jnp.isfinite(loss)
    limit = jnp.where(seen >= _MEMORY, deviations * jnp.sqrt(variance), jnp.inf)
    spike = finite & (loss - mean > limit)
    # While there are few losses these are their plain mean and variance.
    rate = 1.0 / jnp.minimum(seen + 1, _MEMORY)
    off = jnp.minimum(loss - mean, limit)
    return {
        "mean": jnp.where(finite, mean + rate * off, mean),
        "variance": jnp.where(finite, (1 - rate) * (variance + rate * off**2), variance),
        "seen": seen + finite,
        "spikes": state["spikes"] + spike,
    }
