"""From shared frames to the features of one encoder, on the device.

Shape suffixes: V visuals, F shared frames of each, n frames that this encoder sees, S side of a
shared frame in pixels, Z side that this encoder takes, 3 RGB, T time steps, N tokens of a step, D
width.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F

from .spec import EncoderSpec, Layer


@dataclasses.dataclass(frozen=True)
class FrameInput:
    """How an encoder takes frames; the fields of a model's entry for it.

    Attributes:
      frames: of a video; an image has one all the same.
      image_size: side in pixels.
      image_mean, image_std: per channel of RGB in 0..1.
      layer: hidden state that is read, see `spec`.
      chunk: frames that are encoded together; None: as the encoder's configuration says.
    """

    frames: int
    image_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    layer: Layer
    chunk: int | None = None


def encode_frames(
    spec: EncoderSpec, tower: nn.Module, pixels_VFSS3: torch.Tensor, wanted: FrameInput
) -> torch.Tensor:
    """Features of visuals that have equally many shared frames.

    Args:
      spec: of the tower.
      tower: an encoder that reads frames.
      pixels_VFSS3: uint8; F = 1 are images, else a multiple of `wanted.frames`.
      wanted: how this encoder takes them.

    Returns:
      [V, T, N, D].

    Raises:
      ValueError: F is no multiple.
    """
    shared = pixels_VFSS3.shape[1]
    if shared > 1:
        if shared % wanted.frames:
            raise ValueError(
                f"{shared} shared frames are no multiple of the {wanted.frames} that an encoder "
                "sees: choose frames that divide the largest"
            )
        pixels_VFSS3 = pixels_VFSS3[:, :: shared // wanted.frames]
    x = normalised(pixels_VFSS3, wanted)
    return spec.features(tower, x.to(tower.dtype), wanted.layer, wanted.chunk)


def normalised(pixels_VnSS3: torch.Tensor, wanted: FrameInput) -> torch.Tensor:
    """uint8 levels -> float32 [V, n, Z, Z, 3], resized (bicubic, antialiased) and normalised."""
    visuals, frames = pixels_VnSS3.shape[:2]
    x = pixels_VnSS3.flatten(0, 1).float() / 255
    if x.shape[1] != wanted.image_size:
        size = (wanted.image_size, wanted.image_size)
        x = F.interpolate(x.movedim(-1, 1), size, mode="bicubic", antialias=True)
        x = x.clamp(0, 1).movedim(1, -1)  # the kernel overshoots at edges
    mean = torch.tensor(wanted.image_mean, device=x.device)
    std = torch.tensor(wanted.image_std, device=x.device)
    return ((x - mean) / std).unflatten(0, (visuals, frames))
