"""AdamW with decay by parameter name; each head is clipped and scheduled apart from the encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from .config import HeadConfig, OptimConfig
from .mesh import path_name

# After the warm-up a schedule maps progress in [0, 1] to a factor of the peak rate. rsqrt needs
# steps instead of progress.
SCHEDULES: dict[str, Callable[[int, int], optax.Schedule]] = {
    "linear": lambda warmup, total: optax.linear_schedule(1.0, 0.0, total - warmup),
    "poly2": lambda warmup, total: optax.polynomial_schedule(1.0, 0.0, 2, total - warmup),
    "cosine": lambda warmup, total: optax.cosine_decay_schedule(1.0, total - warmup),
    "rsqrt": lambda warmup, total: lambda step: (max(warmup, 1) / (step + max(warmup, 1))) ** 0.5,
    "constant": lambda warmup, total: optax.constant_schedule(1.0),
}


def make_schedule(config: OptimConfig, total_steps: int, lr_mult: float = 1.0) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then the named schedule down to the last step.

    Args:
      config: lr, warmup_steps and the schedule's name.
      total_steps: length of the run, warm-up included.
      lr_mult: factor on every value.

    Raises:
      ValueError: an unknown schedule, or a warm-up that is not shorter than the run.
    """
    if config.schedule not in SCHEDULES:
        raise ValueError(
            f"config.optim.schedule = {config.schedule!r} is not one of "
            f"{', '.join(sorted(SCHEDULES))}"
        )
    warmup = config.warmup_steps
    if not 0 <= warmup < max(total_steps, 1):
        raise ValueError(
            f"config.optim.warmup_steps = {warmup} must lie in 0..{max(total_steps, 1) - 1}"
        )
    decay = SCHEDULES[config.schedule](warmup, max(total_steps, 1))
    peak = config.lr * lr_mult

    def schedule(step: jax.Array) -> jax.Array:
        # (step + 1) / warmup: the first step trains at a small rate, not at 0 and not at the full
        # one.
        ramp = jax.numpy.minimum(1.0, (step + 1) / max(warmup, 1))
        return peak * ramp * decay(jax.numpy.maximum(step - warmup, 0))

    return schedule


def make_optimizer(
    config: OptimConfig, heads: Mapping[str, HeadConfig], total_steps: int
) -> optax.GradientTransformation:
    """AdamW with one group for the encoder and one for each head.

    Each group has its own gradient clip: a common norm would be dominated by whichever is larger,
      and heads of millions of
    classes would set the encoder's step.
    """
    groups = {
        "encoder": _adamw(
            config, make_schedule(config, total_steps), config.clip_norm, config.weight_decay
        )
    }
    for name, head in heads.items():
        schedule = make_schedule(config, total_steps, head.lr_mult)
        groups[f"heads/{name}"] = _adamw(config, schedule, head.clip_norm, head.weight_decay)
    return optax.partition(groups, group_labels)


def group_labels(params: Any) -> Any:
    """The optimiser group of every parameter: 'encoder' or 'heads/NAME'."""

    def label(path: tuple[Any, ...], _: Any) -> str:
        parts = path_name(path).split("/")
        return "encoder" if parts[0] == "encoder" else "/".join(parts[:2])

    return jax.tree_util.tree_map_with_path(label, params)


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: kernels and class centres, by leaf name.

    Names, not ranks: nn.scan stacks biases and norm scales into two-dimensional arrays, which a
      rank test would decay.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path).rsplit("/", 1)[-1] in ("kernel", "centres"), params
    )


def _adamw(
    config: OptimConfig, schedule: optax.Schedule, clip_norm: float, weight_decay: float
) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.scale_by_learning_rate(schedule),
    )
