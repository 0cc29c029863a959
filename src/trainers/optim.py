"""AdamW or Muon with decay by parameter name; each head is clipped and scheduled apart from the
encoder."""

from __future__ import annotations

import functools
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


def make_schedule(
    config: OptimConfig, total_steps: int, lr_mult: float = 1.0, peak: float | None = None
) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then the named schedule down to the last step.

    Args:
      config: lr, warmup_steps and the schedule's name.
      total_steps: length of the run, warm-up included.
      lr_mult: factor on every value.
      peak: the highest value; None takes config.lr.

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
    peak = (config.lr if peak is None else peak) * lr_mult

    def schedule(step: jax.Array) -> jax.Array:
        # (step + 1) / warmup: the first step trains at a small rate, not at 0 and not at the full
        # one.
        ramp = jax.numpy.minimum(1.0, (step + 1) / max(warmup, 1))
        return peak * ramp * decay(jax.numpy.maximum(step - warmup, 0))

    return schedule


def make_optimizer(
    config: OptimConfig, heads: Mapping[str, HeadConfig], total_steps: int
) -> optax.GradientTransformation:
    """One group for the encoder, with Muon one more for the matrices of its blocks, one per head.

    Each group has its own gradient clip: a common norm would be dominated by whichever is larger,
    and heads of millions of classes would set the encoder's step.

    Raises:
      ValueError: an unknown optimiser or schedule.
    """
    if config.name not in ("adamw", "muon"):
        raise ValueError(f"config.optim.name = {config.name!r} must be adamw or muon")
    groups = {
        "encoder": _adamw(
            config, make_schedule(config, total_steps), config.clip_norm, config.weight_decay
        )
    }
    if config.name == "muon":
        groups["matrices"] = _muon(config, make_schedule(config, total_steps, peak=config.muon_lr))
    for name, head in heads.items():
        schedule = make_schedule(config, total_steps, head.lr_mult)
        groups[f"heads/{name}"] = _adamw(
            config, schedule, head.clip_norm, head.weight_decay, head.first_moment_dtype
        )
    return optax.partition(groups, functools.partial(group_labels, muon=config.name == "muon"))


def group_labels(params: Any, muon: bool = False) -> Any:
    """The optimiser group of every parameter: 'encoder', 'matrices' or 'heads/NAME'."""

    def label(path: tuple[Any, ...], _: Any) -> str:
        name = path_name(path)
        if not name.startswith("encoder/"):
            return "/".join(name.split("/")[:2])
        matrix = name.startswith("encoder/blocks/") and name.endswith("/kernel")
        return "matrices" if muon and matrix else "encoder"

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
    config: OptimConfig,
    schedule: optax.Schedule,
    clip_norm: float,
    weight_decay: float,
    first_moment_dtype: str = "float32",
) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=first_moment_dtype),
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.scale_by_learning_rate(schedule),
    )


def _muon(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    # nn.scan stacks the matrices of all layers; each is orthogonalised by itself.
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.contrib.scale_by_muon(
            weight_dimension_numbers=lambda params: jax.tree.map(lambda _: axes, params)
        ),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
