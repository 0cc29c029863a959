"""The training state and one optimiser step; no data, no files, no mesh of its own.

B samples, L tokens, M labels drawn, D width, C rows of class centres.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..losses.cluster_discrimination import cluster_discrimination
from ..models.vit import ViT
from .accumulate import mean_gradient
from .optim import frozen_mask, make_optimizer, make_schedules
from .pretrain_config import HeadConfig, PretrainConfig
from .update import Batches, State, apply_gradient, init_run_state


def padded_classes(num_classes: int) -> int:
    """Rows of the array of class centres: a multiple that any mesh divides and so restores."""
    multiple = 4096 if num_classes >= 4096 else 8
    return -(-num_classes // multiple) * multiple


def init_state(config: PretrainConfig, key: jax.Array) -> State:
    """A fresh training state; pure, so that jit can lay it out over a mesh.

    Args:
      config: model, heads and optimiser.
      key: PRNG key.

    Returns:
      The state of docs/architecture.md, float32.
    """
    key_encoder, key_heads = jax.random.split(key)
    patches_BLK = jnp.zeros((1, 1, config.model.patch**2 * 3), jnp.uint8)
    positions_BL3 = jnp.zeros((1, 1, 3), jnp.int32)
    # One token is too short for some kernels, and parameters do not depend on the kernel.
    encoder = ViT(dataclasses.replace(config.model, attention_impl="xla")).init(
        key_encoder, patches_BLK, positions_BL3, jnp.ones(1, jnp.int32)
    )["params"]
    heads = {
        name: {"centres": _init_centres(jax.random.fold_in(key_heads, i), head, config.model.width)}
        for i, (name, head) in enumerate(sorted(config.heads.items()))
    }
    params = {"encoder": encoder, "heads": heads}
    state = init_run_state(config, params, make_run_optimizer(config))
    hits = {name: jnp.zeros(len(head["centres"]), bool) for name, head in heads.items()}
    return {**state, "hits": hits}


def make_train_step(
    config: PretrainConfig,
) -> Callable[[State, Batches], tuple[State, dict[str, jax.Array]]]:
    """One optimiser step over one batch of every source.

    Args:
      config: the run.

    Returns:
      A pure function (state, batches) -> (state, metrics): `batches` maps each source to patches
      uint8 [B, L, K], positions int32 [B, L, 3], length int32 [B], labels int32 [B, M], weight
      float32 [B]. The gradient is that of the reported loss, the sum of the sources' losses times
      their weights. A step whose loss or gradient is not finite changes nothing but the counters.
    """
    vit = ViT(config.model)
    optimizer = make_run_optimizer(config)
    schedules = make_schedules(config.optim, _groups(config), config.total_steps)

    def source_loss(
        name: str, params: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        source = config.sources[name]
        head = config.heads[source.head]
        out = vit.apply(
            {"params": params["encoder"]}, batch["patches"], batch["positions"], batch["length"]
        )
        return cluster_discrimination(
            out["pooled"],  # in the encoder's compute dtype, as the cosines' products then are
            params["heads"][source.head]["centres"],
            batch["labels"],
            num_classes=head.num_classes,
            weights_B=batch["weight"],
            margin=head.margin,
            scale=head.scale,
            filter_threshold=head.filter_threshold,
            chunks=head.chunks,
            sample_rate=head.sample_rate,
            key=key,
        )

    def loss_fn(
        params: Any, batches: Batches, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        # What is frozen needs no gradient, and the compiler drops the work for it.
        frozen = frozen_mask(params, config.optim.freeze)
        params = jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, params, frozen)
        total, metrics = jnp.zeros(()), {}
        for i, (name, source) in enumerate(sorted(config.sources.items())):
            loss, details = source_loss(name, params, batches[name], jax.random.fold_in(key, i))
            # A piece of a batch counts by its share of the readable records, so that the sum over
            # the pieces is the loss of the whole batch.
            share = batches[name].get("share", 1.0)
            total += source.loss_weight * loss * share
            metrics[f"{name}/loss"] = loss * share
            metrics |= {f"{name}/{key}": value * share for key, value in details.items()}
        return total, metrics

    def train_step(state: State, batches: Batches) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        (loss, metrics), grads = mean_gradient(
            loss_fn, state["params"], _counted(config, batches), key, config.grad_accum_steps
        )
        new, update_metrics = apply_gradient(config, optimizer, state, batches, loss, grads)
        new["hits"] = _update_hits(config, state["hits"], batches)
        metrics |= update_metrics
        updates_done = state["step"] - state["nan_steps"]
        metrics |= {f"lr/{name}": schedule(updates_done) for name, schedule in schedules.items()}
        for name, head in config.heads.items():
            metrics[f"never_hit/{name}"] = 1.0 - new["hits"][name].sum() / head.num_classes
        return new, metrics

    return train_step


def make_run_optimizer(config: PretrainConfig) -> optax.GradientTransformation:
    """The optimiser of the encoder's parameters and of every head's."""
    return make_optimizer(config.optim, _groups(config), config.total_steps, config.model.depth)


def _groups(config: PretrainConfig) -> dict[str, HeadConfig]:
    return {f"heads/{name}": head for name, head in config.heads.items()}


def _counted(config: PretrainConfig, batches: Batches) -> Batches:
    """The batches with weight 0 for what the loss leaves out: rows without a label, too.

    The pieces of a batch count by their weights, which must be those that the loss averages with.
    """
    counted = {}
    for name, source in config.sources.items():
        labelled_B = _known(config, source.head, batches[name]["labels"]).any(axis=1)
        weight_B = jnp.where(labelled_B, batches[name]["weight"], 0.0)
        counted[name] = {**batches[name], "weight": weight_B}
    return counted


def _known(config: PretrainConfig, head: str, labels_BM: jax.Array) -> jax.Array:
    """Bool [B, M]: which labels are classes of the head."""
    return (labels_BM >= 0) & (labels_BM < config.heads[head].num_classes)


def _update_hits(
    config: PretrainConfig, hits: dict[str, jax.Array], batches: Batches
) -> dict[str, jax.Array]:
    """Per head, which classes have been the label of a sample so far: bool [C]."""
    hits = dict(hits)
    for name, source in config.sources.items():
        labels_BM = batches[name]["labels"]
        known_BM = _known(config, source.head, labels_BM)
        # Out of range, where "drop" drops it: a negative index would count from the end.
        index = jnp.where(known_BM, labels_BM, len(hits[source.head]))
        hits[source.head] = hits[source.head].at[index].set(True, mode="drop")
    return hits


def _init_centres(key: jax.Array, head: HeadConfig, width: int) -> jax.Array:
    """N(0, 0.01), as the published head; only the direction matters to the loss."""
    return 0.01 * jax.random.normal(key, (padded_classes(head.num_classes), width), jnp.float32)
