"""The state of an image-text run and one optimiser step; no data, no files, no mesh of its own.

B pairs, L image tokens, T text tokens, O tokens of a caption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..losses.captioning import captioning
from ..losses.contrastive import contrastive
from ..models import clip
from ..models.captioning import keep_tokens
from .contrastive_config import ContrastiveConfig
from .optim import frozen_mask, make_optimizer, make_schedules
from .run_config import GroupConfig
from .update import Batches, State, apply_gradient, init_run_state


def init_state(config: ContrastiveConfig, key: jax.Array) -> State:
    """A fresh training state; pure, so that jit can lay it out over a mesh."""
    return init_run_state(config, clip.init(config.model, key), _optimizer(config))


def make_train_step(
    config: ContrastiveConfig,
) -> Callable[[State, Batches], tuple[State, dict[str, jax.Array]]]:
    """One optimiser step over one batch of every source.

    Args:
      config: the run.

    Returns:
      A pure function (state, batches) -> (state, metrics): `batches` maps each source to what
      `make_pair_loader` yields. The gradient is that of the reported loss, the
      sum of the sources' losses times their weights. A step whose loss or gradient is not finite
      changes nothing but the counters.
    """
    optimizer = _optimizer(config)
    schedules = make_schedules(config.optim, _groups(config), config.total_steps)

    def loss_fn(
        params: Any, batches: Batches, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        # What is frozen needs no gradient, and the compiler drops the work for it.
        frozen = frozen_mask(params, config.optim.freeze)
        params = jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, params, frozen)
        total, metrics = jnp.zeros(()), {}
        for i, (name, source) in enumerate(sorted(config.sources.items())):
            key_source = jax.random.fold_in(key, i)
            loss, details = pair_loss(config, params, batches[name], key_source)
            total += source.loss_weight * loss
            metrics |= {f"{name}/{key}": value for key, value in details.items()}
        return total, metrics

    def train_step(state: State, batches: Batches) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state["params"], batches, key
        )
        new, update_metrics = apply_gradient(config, optimizer, state, batches, loss, grads)
        if "logit_scale" in new["params"]:
            # The loss is flat above the largest scale: a step beyond it would never come back.
            scale = new["params"]["logit_scale"]["value"]
            highest = math.log(config.contrastive.max_scale)
            new["params"] = {
                **new["params"],
                "logit_scale": {"value": jnp.minimum(scale, highest)},
            }
        updates_done = state["step"] - state["nan_steps"]
        rates = {f"lr/{name}": schedule(updates_done) for name, schedule in schedules.items()}
        return new, metrics | update_metrics | rates

    return train_step


def pair_loss(
    config: ContrastiveConfig, params: Any, batch: Mapping[str, jax.Array], key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of one source's batch, and its parts.

    OpenVision (arXiv 2505.04601): images against the web caption and against the synthetic one,
    and a decoder that writes the synthetic caption from the image and the web caption. OpenVision 2
    (arXiv 2509.01644) has the decoder alone.
    """
    model, weights_B = config.model, batch["weight"]
    total, metrics = jnp.zeros(()), {}
    if model.text is None:
        tokens_BLD = clip.encode_image(model, params, batch)["tokens"]
    else:
        image_BE, tokens_BLD = clip.embed_image(model, params, batch)
        web_BE, web_BTD = clip.embed_text(model, params, batch["text_0"])
        synthetic_BE, _ = clip.embed_text(model, params, batch["text_1"])
        loss, details = contrastive(
            image_BE,
            (web_BE, synthetic_BE),
            logit_scale=params["logit_scale"]["value"],
            logit_bias=params["logit_bias"]["value"] if "logit_bias" in params else None,
            kind=model.loss,
            weights_B=weights_B,
            chunks=config.contrastive.chunks,
            max_scale=config.contrastive.max_scale,
        )
        total += config.contrastive.weight * loss
        metrics |= {"contrastive": loss} | details
    if model.decoder is not None:
        kept, lengths_B = keep_tokens(
            tokens_BLD, batch["length"], config.captioning.keep_ratio, key, batch["index"]
        )
        context = web_BTD if model.decoder.kind == "queries" else batch["target"]
        loss, details = captioning(
            clip.caption(model, params, kept, context, lengths_B),
            params["decoder"]["head"]["kernel"],
            batch["target"],
            batch["target_mask"],
            chunk=config.captioning.chunk,
            weights_B=weights_B,
        )
        total += config.captioning.weight * loss
        metrics |= {"captioning": loss} | details
    return total, {"loss": total} | metrics


def _groups(config: ContrastiveConfig) -> dict[str, GroupConfig]:
    """A group for every part: what config.groups leaves out is treated as the encoder is."""
    optim = config.optim
    like_encoder = GroupConfig(
        weight_decay=optim.weight_decay,
        clip_norm=optim.clip_norm,
        first_moment_dtype=optim.first_moment_dtype,
    )
    return {part: config.groups.get(part, like_encoder) for part in config.parts}


def _optimizer(config: ContrastiveConfig) -> Any:
    return make_optimizer(
        config.optim, _groups(config), config.total_steps, config.model.vision.depth
    )
