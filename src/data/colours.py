"""Colours of a view changed at random: jitter and grey as in SimCLR (arXiv 2002.05709).

Shape suffixes: S side of the view.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from .augment import AugmentConfig

_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow


def change_colours(
    rgb_SS3: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """The view with other brightness, contrast, saturation and hue, in random order, or in grey.

    Args:
      rgb_SS3: uint8.
      config: probabilities and strengths; without them nothing is drawn.
      rng: of this example.

    Returns:
      uint8 [S, S, 3].
    """
    if config.jitter and rng.uniform() < config.jitter:
        strengths = [config.brightness, config.contrast, config.saturation, config.hue]
        amounts = [rng.uniform(-strength, strength) for strength in strengths]
        for change in rng.permutation(4):
            if amounts[change]:
                rgb_SS3 = _CHANGES[change](rgb_SS3, amounts[change])
    if config.grey and rng.uniform() < config.grey:
        rgb_SS3 = np.repeat(_rounded(rgb_SS3 @ _GREY)[..., None], 3, axis=-1)
    return rgb_SS3


def _brightness(rgb_SS3: np.ndarray, amount: float) -> np.ndarray:
    return _rounded(rgb_SS3 * np.float32(1 + amount))


def _contrast(rgb_SS3: np.ndarray, amount: float) -> np.ndarray:
    """Away from the mean grey of the view, or towards it."""
    mean = (rgb_SS3 @ _GREY).mean()
    return _rounded(mean + (rgb_SS3 - mean) * np.float32(1 + amount))


def _saturation(rgb_SS3: np.ndarray, amount: float) -> np.ndarray:
    """Away from the grey of each pixel, or towards it."""
    grey = (rgb_SS3 @ _GREY)[..., None]
    return _rounded(grey + (rgb_SS3 - grey) * np.float32(1 + amount))


def _hue(rgb_SS3: np.ndarray, amount: float) -> np.ndarray:
    """Turned by a share of the colour circle."""
    hsv = np.array(Image.fromarray(rgb_SS3).convert("HSV"))
    hsv[..., 0] += np.uint8(round(amount * 256) % 256)  # wraps around, as the circle does
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


_CHANGES = (_brightness, _contrast, _saturation, _hue)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)
