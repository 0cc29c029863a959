"""AdamW or Muon with decay by parameter name; what is trained beside the encoder (heads, a text
tower) is clipped and scheduled apart from it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .mesh import path_name
from .run_config import GroupConfig, OptimConfig

# After the warm-up a schedule maps steps to a factor of the peak rate.
SCHEDULES: dict[str, Callable[[int, int], optax.Schedule]] = {
    "linear": lambda warmup, total: optax.linear_schedule(1.0, 0.0, total - warmup),
    "poly2": lambda warmup, total: optax.polynomial_schedule(1.0, 0.0, 2, total - warmup),
    "cosine": lambda warmup, total: optax.cosine_decay_schedule(1.0, total - warmup),
    "rsqrt": lambda warmup, total: lambda step: (max(warmup, 1) / (step + max(warmup, 1))) ** 0.5,
    "wsd": lambda warmup, total: optax.constant_schedule(1.0),
    "constant": lambda warmup, total: optax.constant_schedule(1.0),
}
# rsqrt: Zhai et al. 2022 (arXiv 2106.04560); wsd, warm-up, stable, decay: Hu et al. 2024 (arXiv
# 2404.06395). Their end is a linear cooldown of a length of its own.
WITH_COOLDOWN = ("rsqrt", "wsd")


def make_schedule(
    config: OptimConfig, total_steps: int, lr_mult: float = 1.0, peak: float | None = None
) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then the named schedule down to the last step.

    Args:
      config: lr, warmup_steps, cooldown_steps and the schedule's name.
      total_steps: length of the run, warm-up included.
      lr_mult: factor on every value.
      peak: the highest value; None takes config.lr.

    Raises:
      ValueError: an unknown schedule, or a warm-up and cooldown that don't fit it or the run.
    """
    name, warmup, cooldown = config.schedule, config.warmup_steps, config.cooldown_steps
    total = max(total_steps, 1)
    if name not in SCHEDULES:
        raise ValueError(
            f"config.optim.schedule = {name!r} is not one of {', '.join(sorted(SCHEDULES))}"
        )
    if not 0 <= warmup < total:
        raise ValueError(f"config.optim.warmup_steps = {warmup} must lie in 0..{total - 1}")
    if cooldown and name not in WITH_COOLDOWN:
        raise ValueError(
            f"config.optim.cooldown_steps = {cooldown}: schedule {name!r} has none, "
            f"{' and '.join(WITH_COOLDOWN)} do"
        )
    if name == "wsd" and not cooldown:
        raise ValueError("config.optim.schedule = 'wsd' needs config.optim.cooldown_steps")
    if not 0 <= cooldown <= total - warmup:
        raise ValueError(
            f"config.optim.cooldown_steps = {cooldown} must lie in 0..{total - warmup}, the steps "
            "after the warm-up"
        )
    decay = SCHEDULES[name](warmup, total)
    peak = (config.lr if peak is None else peak) * lr_mult

    def schedule(step: jax.Array) -> jax.Array:
        # (step + 1) / warmup: the first step trains at a small rate, not at 0 and not at the full
        # one. The last step is total - 1, and trains too.
        ramp = jnp.minimum(1.0, (step + 1) / max(warmup, 1))
        if cooldown:
            ramp = jnp.minimum(ramp, (total - step) / cooldown)
        return peak * ramp * decay(jnp.maximum(step - warmup, 0))

    return schedule


def make_optimizer(
    config: OptimConfig, others: Mapping[str, GroupConfig], total_steps: int, depth: int
) -> optax.GradientTransformation:
    """The encoder's group, with Muon one more for the matrices of its blocks, and the others.

    Each group has its own gradient clip: a common norm would be dominated by whichever is larger,
    and heads of millions of classes would set the encoder's step.

    Args:
      config: the optimiser.
      others: what is trained beside the encoder, by its path in the parameters: "heads/main",
        "text".
      total_steps: length of the run.
      depth: number of the encoder's blocks, for the layer-wise decay.

    Raises:
      ValueError: an unknown optimiser or schedule; when it is initialised, a regex of
        `config.freeze` that no parameter matches.
    """
    if config.name not in ("adamw", "muon"):
        raise ValueError(f"config.optim.name = {config.name!r} must be adamw or muon")
    layers = scale_by_layer(config.layer_decay, depth)
    groups = {"frozen": optax.set_to_zero()}
    for name, schedule in make_schedules(config, others, total_steps).items():
        if name == "encoder":
            adam = _adamw(config, config)
            groups[name] = optax.chain(adam, layers, optax.scale_by_learning_rate(schedule))
        elif name == "matrices":
            groups[name] = optax.chain(
                _muon(config), layers, optax.scale_by_learning_rate(schedule)
            )
        else:
            adam = _adamw(config, others[name])
            groups[name] = optax.chain(adam, optax.scale_by_learning_rate(schedule))
    label = functools.partial(group_labels, config=config, others=tuple(others))
    return optax.partition(groups, label)


def make_schedules(
    config: OptimConfig, others: Mapping[str, GroupConfig], total_steps: int
) -> dict[str, optax.Schedule]:
    """The learning rate by step of every group: encoder, with Muon matrices, and the others."""
    schedules = {"encoder": make_schedule(config, total_steps)}
    if config.name == "muon":
        schedules["matrices"] = make_schedule(config, total_steps, peak=config.muon_lr)
    for name, group in others.items():
        schedules[name] = make_schedule(config, total_steps, group.lr_mult)
    return schedules


def group_labels(params: Any, config: OptimConfig, others: tuple[str, ...]) -> Any:
    """The optimiser group of every parameter: frozen, encoder, matrices or one of the others.

    Raises:
      ValueError: a regex of `config.freeze` that matches nothing.
    """
    frozen = frozen_mask(params, config.freeze)

    def label(path: tuple[Any, ...], _: Any, frozen: bool) -> str:
        name = path_name(path)
        if frozen:
            return "frozen"
        if not name.startswith("encoder/"):
            group = next((one for one in others if f"{name}/".startswith(f"{one}/")), None)
            assert group is not None, f"{name} is in none of the groups {others}"
            return group
        matrix = name.startswith("encoder/blocks/") and name.endswith("/kernel")
        return "matrices" if config.name == "muon" and matrix else "encoder"

    return jax.tree_util.tree_map_with_path(label, params, frozen)


def frozen_mask(params: Any, freeze: tuple[str, ...]) -> Any:
    """True for every parameter in whose path one of the regexes is found.

    Raises:
      ValueError: a regex that is found nowhere.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for regex in freeze:
        if not any(re.search(regex, name) for name in names):
            raise ValueError(
                f"config.optim.freeze: {regex!r} matches no parameter; there are "
                f"{', '.join(names[:5])} ..."
            )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.search(regex, path_name(path)) for regex in freeze), params
    )


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: kernels and class centres, by leaf name.

    Names, not ranks: nn.scan stacks biases and norm scales into two-dimensional arrays, which a
      rank test would decay.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path).rsplit("/", 1)[-1] in ("kernel", "centres"), params
    )


def scale_by_layer(decay: float, depth: int) -> optax.GradientTransformation:
    """Layer-wise decay of the encoder's rate (BEiT, arXiv 2106.08254, appendix).

    The final norm and the pooling head keep the whole rate, block i has decay^(depth - i), the
    embedding (patches, class token and the norm before the blocks) decay^(depth + 1).
    """

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        name = path_name(path)
        if "/blocks/" in name:
            factors = decay ** (depth - jnp.arange(depth, dtype=update.dtype))
            return update * factors.reshape(-1, *[1] * (update.ndim - 1))
        embedding = name.split("/")[1] in ("patch_embed", "cls", "layernorm_pre")
        return update * decay ** (depth + 1) if embedding else update

    return optax.stateless(
        lambda updates, _: (
            updates if decay == 1.0 else jax.tree_util.tree_map_with_path(scale, updates)
        )
    )


def _adamw(config: OptimConfig, group: OptimConfig | GroupConfig) -> optax.GradientTransformation:
    return optax.chain(
        _clip(group.clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=group.first_moment_dtype),
        optax.add_decayed_weights(group.weight_decay, decay_mask),
    )


def _clip(norm: float) -> optax.GradientTransformation:
    return optax.clip_by_global_norm(norm) if norm else optax.identity()


def _muon(config: OptimConfig) -> optax.GradientTransformation:
    # nn.scan stacks the matrices of all layers; each is orthogonalised by itself.
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))
    return optax.chain(
        _clip(config.clip_norm),
        optax.contrib.scale_by_muon(
            mu_dtype=config.first_moment_dtype,
            weight_dimension_numbers=lambda params: jax.tree.map(lambda _: axes, params),
        ),
        optax.add_decayed_weights(config.weight_decay),
    )
