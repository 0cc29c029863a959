"""One optimiser step over all micro-batches of all processes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from ..data.examples import IGNORED
from ..model.config import VISUAL_TOKEN

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    from ..data.dataset import Batch


@dataclasses.dataclass
class Counts:
    """What went through a step, or several, over all processes.

    Attributes:
      seen: rows, those that failed among them; failed: those that could not be used.
      tokens: of text and visuals, without padding; visual: visual ones; supervised: those that the
        loss is taken at.
      stops: processes that have been told to stop.
    """

    seen: int = 0
    failed: int = 0
    tokens: int = 0
    visual: int = 0
    supervised: int = 0
    stops: int = 0

    @classmethod
    def of(cls, batches: Sequence[Batch], stop: bool, accelerator: Accelerator) -> Counts:
        """Counts the micro-batches of all processes, which all have to call this."""
        own = cls(stops=int(stop))
        for batch in batches:
            own.seen += batch.seen
            own.failed += len(batch.failures)
            if batch.seen > len(batch.failures):  # else nothing but padding stands in the batch
                own.tokens += int(batch.inputs["attention_mask"].sum())
            own.visual += int((batch.inputs["input_ids"] == VISUAL_TOKEN).sum())
            own.supervised += int((batch.inputs["labels"][:, 1:] != IGNORED).sum())
        if accelerator.num_processes == 1:
            return own
        values = torch.tensor(dataclasses.astuple(own), device=accelerator.device)
        return cls(*accelerator.reduce(values, "sum").tolist())

    def add(self, other: Counts) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class StepResult(NamedTuple):
    """What a step reports.

    Attributes:
      loss: over all processes.
      norm: of the gradient, before it is clipped.
      fusion: the mean weight of each encoder over all visuals, by name.
    """

    loss: float
    norm: float
    fusion: dict[str, float]


def train_step(
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    batches: Sequence[Batch],
    supervised: int,
    clip_norm: float,
    accelerator: Accelerator,
    encoders: Sequence[str] = (),
) -> StepResult:
    """Accumulates the gradient of the mean loss over a step's supervised tokens, and updates.

    The mean is taken over all tokens of all processes at once, so that k micro-batches of b rows
    are one batch of k*b, however many tokens each has. A step without a finite loss and gradient
    updates nothing.

    Args:
      model: wrapped for the processes.
      optimizer: prepared; its rates are set.
      batches: of this process.
      supervised: supervised tokens of all processes, at least 1.
      clip_norm: largest norm of the gradient; 0 doesn't clip.
      accelerator: of the run.
      encoders: that the model's fusion weighs against each other.
    """
    # Wrappers average gradients over processes, where the sum is wanted.
    share = supervised / accelerator.num_processes
    losses = []
    # Sums of the encoders' weights, and behind them the number of visuals.
    weights = torch.zeros(len(encoders) + 1, device=accelerator.device)
    for number, batch in enumerate(batches):
        inputs = {
            name: None if x is None else x.to(accelerator.device, non_blocking=True)
            for name, x in batch.inputs.items()
        }
        last = number == len(batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            out = model(**inputs, num_items_in_batch=share)
            accelerator.backward(out.loss)
        losses.append(out.loss.detach())
        if encoders and out.fusion_weights is not None:
            weights_VE = out.fusion_weights.detach().float()
            weights[:-1] += weights_VE.sum(0)
            weights[-1] += len(weights_VE)
    loss = accelerator.reduce(torch.stack(losses).sum(), "mean").item()
    norm = accelerator.clip_grad_norm_(model.parameters(), clip_norm or float("inf"))
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    norm = float(norm)
    if math.isfinite(loss) and math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad()
    return StepResult(loss, norm, _mean_weights(weights, encoders, accelerator))


def _mean_weights(
    sums: torch.Tensor, encoders: Sequence[str], accelerator: Accelerator
) -> dict[str, float]:
    """The mean weight of each encoder over the visuals of all processes; {} without any."""
    if not encoders:
        return {}
    *totals, visuals = accelerator.reduce(sums, "sum").tolist()
    return {n: x / visuals for n, x in zip(encoders, totals, strict=True)} if visuals else {}


def seed_step(seed: int, step: int, process: int) -> None:
    """Sets torch's generators for a step: what is drawn in it depends on these numbers alone.

    So a run that goes on draws what it would have drawn, and no generator's state is kept.
    """
    state = np.random.SeedSequence([seed, step, process]).generate_state(2, np.uint32)
    torch.manual_seed(int(state[0]) << 31 ^ int(state[1]))
