"""What the launcher decides: processes, devices, and how weights are spread over them."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from .config import LlavaTrainConfig

KNOWN = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP")


def start_processes(config: LlavaTrainConfig) -> Accelerator:
    """Joins the processes that the launcher has started; without one there is this process.

    Raises:
      ValueError: the launcher spreads the model in a way that checkpoints here don't know.
    """
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "") != "true"
    # Every process reads the weights: adapters and new projectors are drawn alike in all of them,
    # and digests are taken. accelerate's default would leave all processes but one without.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    bf16 = config.precision == "bf16" or (config.precision == "auto" and on_gpu)
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    kind = accelerator.distributed_type
    if kind.value not in KNOWN:
        raise ValueError(f"accelerate launch: {kind.value} is not supported; take FSDP2")
    if kind is DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError(
            "accelerate launch: FSDP 1 flattens what is trained together with what is frozen; "
            "add --fsdp_version 2"
        )
    return accelerator


def hold_frozen(model: nn.Module, accelerator: Accelerator) -> None:
    """Keeps frozen weights in bfloat16 where the run computes in it; trained ones stay float32.

    FSDP2 shards all of them, and casts as it gathers: there they stay float32.
    """
    if accelerator.mixed_precision != "bf16" or accelerator.is_fsdp2:
        return
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def describe(model: nn.Module, accelerator: Accelerator) -> str:
    """One line about what is trained, where."""
    sizes = [(p.requires_grad, p.numel()) for p in model.parameters()]
    trained = sum(size for trains, size in sizes if trains)
    precision = "bf16" if accelerator.mixed_precision == "bf16" else "float32"
    return (
        f"{trained:,} of {sum(size for _, size in sizes):,} parameters trained, "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type} "
        f"({accelerator.distributed_type.value}), {precision}"
    )
