"""The heads of an attentive probe: their state, one step of all of them, their scores. No files.

Every learning rate trains a head of its own. The heads start alike and see the same batches; their
arrays are stacked, and each is clipped, scheduled and stepped by itself.

Shape suffixes: R learning rates, B batch, L tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ...models.classifier import AttentiveClassifier
from .config import AttentiveProbeConfig

State = dict[str, Any]
Batch = dict[str, jax.Array]


def init_probe(
    config: AttentiveProbeConfig, classifier: AttentiveClassifier, width: int, key: jax.Array
) -> State:
    """A fresh state; pure, so that jit can lay it out over a mesh.

    Args:
      config: learning rates and optimiser.
      classifier: the head.
      width: D of the encoder's tokens.
      key: PRNG key.

    Returns:
      `params/heads` and `opt_state` with a leading axis R; `best`: the parameters of one head, with
      its `score`, `rate` and `epoch` (1 for the first); `step`; `nan_steps` int32 [R];
      `bad_records`, unreadable rows so far.
    """
    tokens_11D, lengths_1 = jnp.zeros((1, 1, width)), jnp.ones(1, jnp.int32)
    head = classifier.init(key, tokens_11D, lengths_1)["params"]
    rates = len(config.lrs)
    heads = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], rates, axis=0), head)
    zero = jnp.zeros((), jnp.int32)
    return {
        "params": {"heads": heads},
        "opt_state": jax.vmap(_optimizer(config).init)(heads),
        "best": {"params": head, "score": jnp.float32(-1), "rate": zero, "epoch": zero},
        "step": zero,
        "nan_steps": jnp.zeros(rates, jnp.int32),
        "bad_records": zero,
    }


def make_probe_step(
    config: AttentiveProbeConfig, classifier: AttentiveClassifier, total_steps: int, metric: str
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """One optimiser step of every head.

    AdamW without decay, that is Adam. A head whose loss or gradient is not finite stays as it is.

    Args:
      config: the probe.
      classifier: the head.
      total_steps: length of the run.
      metric: "top1": softmax with label smoothing; "mean_average_precision": a binary cross-entropy
        per class, averaged over the classes.

    Returns:
      A pure function (state, batch) -> (state, metrics [R]): `batch` holds `tokens` [B, L, D],
      `length` int32 [B], `targets` float32 [B, C] of 0 and 1, `weight` float32 [B].
    """
    optimizer = _optimizer(config)
    schedules = [optax.linear_schedule(lr, config.end_lr, total_steps) for lr in config.lrs]

    def loss_fn(head: Any, batch: Batch) -> jax.Array:
        logits_BC = classifier.apply({"params": head}, batch["tokens"], batch["length"])
        if metric == "top1":
            smoothed_BC = optax.smooth_labels(batch["targets"], config.label_smoothing)
            loss_B = optax.softmax_cross_entropy(logits_BC, smoothed_BC)
        else:
            loss_B = optax.sigmoid_binary_cross_entropy(logits_BC, batch["targets"]).mean(axis=1)
        weight_B = batch["weight"]
        return jnp.sum(loss_B * weight_B) / jnp.maximum(weight_B.sum(), 1.0)

    def one(head: Any, opt_state: Any, lr: jax.Array, batch: Batch) -> tuple[Any, Any, Any]:
        loss, grads = jax.value_and_grad(loss_fn)(head, batch)
        norm = optax.tree.norm(grads)
        updates, new_opt_state = optimizer.update(grads, opt_state)
        new = (optax.tree.add_scale(head, -lr, updates), new_opt_state)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (head, opt_state))
        return *kept, {"loss": loss, "grad_norm": norm, "finite": finite}

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        lr_R = jnp.stack([schedule(state["step"]) for schedule in schedules])
        heads, opt_state, metrics = jax.vmap(one, in_axes=(0, 0, 0, None))(
            state["params"]["heads"], state["opt_state"], lr_R, batch
        )
        finite_R = metrics.pop("finite")
        return state | {
            "params": {"heads": heads},
            "opt_state": opt_state,
            "step": state["step"] + 1,
            "nan_steps": state["nan_steps"] + ~finite_R,
            "bad_records": state["bad_records"] + jnp.sum(batch["weight"] == 0, dtype=jnp.int32),
        }, metrics | {"lr": lr_R}

    return step


def keep_best(state: State, scores_R: jax.Array, epoch: jax.Array) -> State:
    """The state with the best head so far; of equal ones the later epoch's and the first rate's.

    Args:
      state: heads and the best one up to now.
      scores_R: of every rate on the held-out part.
      epoch: number of the epoch that ended.
    """
    rate = jnp.argmax(scores_R).astype(jnp.int32)
    new = {
        "params": jax.tree.map(lambda leaf: leaf[rate], state["params"]["heads"]),
        "score": scores_R[rate],
        "rate": rate,
        "epoch": epoch,
    }
    better = new["score"] >= state["best"]["score"]
    best = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, state["best"])
    return {**state, "best": best}


def make_scores(classifier: AttentiveClassifier, metric: str) -> Callable[[Any, Batch], jax.Array]:
    """Probabilities of several heads: (heads stacked [R, ...], features) -> float32 [R, B, C]."""
    activation = jax.nn.softmax if metric == "top1" else jax.nn.sigmoid

    def scores(heads: Any, features: Batch) -> jax.Array:
        def one(head: Any) -> jax.Array:
            logits = classifier.apply({"params": head}, features["tokens"], features["length"])
            return activation(logits)

        return jax.vmap(one)(heads)

    return scores


def _optimizer(config: AttentiveProbeConfig) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8))
