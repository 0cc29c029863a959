"""Gradient accumulation: one batch in several pieces, as if it were one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .update import Batches

# (parameters, batches, key) -> (loss, metrics)
LossFn = Callable[[Any, Batches, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def mean_gradient(
    loss_fn: LossFn, params: Any, batches: Batches, key: jax.Array, pieces: int
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Any]:
    """Value and gradient of a loss over batches that are taken in pieces, one after the other.

    Args:
      loss_fn: each source's part of its loss and metrics is a mean over rows weighted by `weight`,
        times the scalar `share` that this function adds to a piece of a source's batch: the piece's
        part of the batch's weights. Their sum over the pieces is then that of the whole batch.
      params: the point.
      batches: per source arrays of B rows, `weight` among them; B is a multiple of `pieces`.
      key: PRNG key; each piece gets one of its own, a single piece the key itself.
      pieces: number of pieces.

    Returns:
      ((loss, metrics), gradient), the sums over the pieces, in the dtype of the parameters.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if pieces == 1:
        return grad_fn(params, batches, key)

    def split(rows: jax.Array) -> jax.Array:
        # Rows k, k + pieces, ... make piece k: rows of one device stay on it.
        return rows.reshape(-1, pieces, *rows.shape[1:]).swapaxes(0, 1)

    cut = {}
    for name, batch in batches.items():
        cut[name] = jax.tree.map(split, dict(batch))
        weight = cut[name]["weight"].sum(axis=1)
        cut[name]["share"] = weight / jnp.maximum(weight.sum(), 1e-9)

    def add(total: Any, numbered: tuple[jax.Array, Batches]) -> tuple[Any, None]:
        number, piece = numbered
        found = grad_fn(params, piece, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, total, found), None

    first = jax.eval_shape(grad_fn, params, jax.tree.map(lambda rows: rows[0], cut), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    return jax.lax.scan(add, zeros, (jnp.arange(pieces), cut))[0]
