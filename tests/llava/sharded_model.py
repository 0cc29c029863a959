"""A model of three small parts, and one update of it; two processes of a test import this."""

from __future__ import annotations

import torch
from torch import nn


def make() -> nn.Module:
    """Names as in a LLaVA model; half of it is frozen."""
    torch.manual_seed(0)
    model = nn.Module()
    model.vision_tower = nn.Linear(6, 5)
    model.projector = nn.Linear(5, 7)
    model.language_model = nn.Sequential(nn.Linear(7, 8), nn.Linear(8, 3))
    model.vision_tower.requires_grad_(False)
    model.forward = lambda x: model.language_model(model.projector(model.vision_tower(x)))
    return model


def update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step on fixed numbers, the same in every process."""
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    x = torch.linspace(-1, 1, 24).view(4, 6)
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
