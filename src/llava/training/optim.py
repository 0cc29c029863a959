"""What a stage trains, at which rate: AdamW groups per part, schedules, the frozen rest."""

from __future__ import annotations

import math
import re

import torch
from torch import nn

from .config import PARTS, OptimOptions


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by the first piece of its name.

    Raises:
      ValueError: it is of none, so that no rate says how it is trained.
    """
    part = name.split(".", 1)[0]
    if part not in PARTS:
        raise ValueError(f"parameter {name} is of none of the parts {', '.join(PARTS)}")
    return part


def set_trainable(model: nn.Module, config: OptimOptions, unused: set[str], lora: bool) -> set[str]:
    """Marks what a run trains, and sets the model to training mode; a frozen encoder evaluates.

    Args:
      model: a LLaVA model, its adapter added.
      config: rates and `freeze`.
      unused: names of parameters on which no output depends, such as those of the encoder's blocks
        behind the selected layer. They are frozen too: a gradient that never comes would stop
        several processes.
      lora: only the adapter of the language model is trained, not its own weights.

    Returns:
      The names of the parameters that are trained.

    Raises:
      ValueError: a regex of `freeze` matches nothing, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for regex in config.freeze:
        if not any(re.search(regex, name) for name in parameters):
            raise ValueError(f"config.optim.freeze: {regex!r} matches no parameter of the model")
    rates = config.rates()
    for name, parameter in parameters.items():
        part = part_of(name)
        adapter = ".lora_" in name
        trains = rates[part] > 0 and name not in unused
        trains &= adapter or not (lora and part == "language_model")
        trains &= not any(re.search(regex, name) for regex in config.freeze)
        parameter.requires_grad_(trains)
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    if not trained:
        raise ValueError("config.optim.freeze leaves nothing to train")
    # The language model is in training mode though it be frozen: gradients pass through it, and
    # only so does it recompute its activations.
    model.train()
    model.vision_tower.train(any(part_of(name) == "vision_tower" for name in trained))
    return trained


def make_optimizer(model: nn.Module, config: OptimOptions) -> torch.optim.AdamW:
    """AdamW over what requires a gradient, two groups per part: with decay and without.

    Each group has `peak`, the rate that `set_rates` scales.
    """
    rates, groups = config.rates(), {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = part_of(name)
            # Norms and biases are the vectors among the parameters.
            groups.setdefault((part, parameter.ndim > 1), []).append(parameter)
    options = [
        {
            "params": parameters,
            "part": part,
            "peak": rates[part],
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in sorted(groups.items())
    ]
    # A rate of 0 until `set_rates` is called: nobody steps by a rate that the schedule didn't give.
    return torch.optim.AdamW(options, lr=0.0, betas=(config.b1, config.b2), eps=config.eps)


def rate_factor(config: OptimOptions, step: int, total_steps: int) -> float:
    """Factor of the peak rates in step 0..total_steps-1: linear warm-up, then the schedule.

    The first step trains at a small rate and not at 0, and so does the last one. `step` and
    `total_steps` alone decide, so that there is no scheduler whose state would have to be kept.
    """
    warmup = math.ceil(config.warmup * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(total_steps - warmup, 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return 1.0 - share if config.schedule == "linear" else 1.0


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Sets the rates of a step; returns that of each part."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return {group["part"]: group["lr"] for group in optimizer.param_groups}
