"""Analytic FLOPs and peak rates, for the model FLOPs utilisation (MFU).

Analytic, because XLA's cost analysis counts the body of a scan once. Rematerialised work is not
counted.
"""

from __future__ import annotations

import jax

from ..models.config import ViTConfig

# Dense bf16 peaks of one chip in TFLOP/s, from the makers' data sheets; keys are parts of
# `device_kind`, first match wins.
PEAK_TFLOPS = {
    "H200": 989.5,
    "H100": 989.5,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "TPU v6": 918.0,
    "TPU v5p": 459.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,
    "TPU v4": 275.0,
    "TPU v3": 61.5,
}


def train_flops_per_token(config: ViTConfig, length: int) -> float:
    """FLOPs of forward and backward per token of a sequence of `length` tokens.

    3 * depth * (24 D^2 + 4 L D) with mlp = 4 D: a block has 12 D^2 weights, attention adds 4 L D,
    and the backward pass costs twice the forward one. Patch embedding and head are below 1 % and
    left out.

    Args:
      config: the encoder.
      length: L, tokens per sequence.
    """
    width = config.width
    weights = 8 * width**2 + 4 * width * config.mlp_dim
    return 3.0 * config.depth * (weights + 4 * length * width)


def head_flops_per_sample(width: int, num_classes: float) -> float:
    """FLOPs of one sample against all class centres, forward and both gradients."""
    return 6.0 * width * num_classes


def peak_tflops(device: jax.Device) -> float:
    """Peak of one device in TFLOP/s; 0 where its kind is unknown (a CPU: no MFU is reported)."""
    for kind, peak in PEAK_TFLOPS.items():
        if kind.lower() in device.device_kind.lower():
            return peak
    return 0.0
