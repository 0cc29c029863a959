"""What the demo data sets are drawn of: a handwritten digit over a part of a photograph.

The digits are scikit-learn's bundled set, the photographs its two bundled ones. Training and test
share no digit image and no photograph region.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

SIDE = 128
MASTER = 96  # side of the enlarged digit that pictures are drawn from
ANGLES = (-20.0, 20.0)  # degrees, below a quarter turn, which leaves 6 and 9 apart

_DIMMING = 0.3  # of the photographs, so that the digit stands out against any of their places
_SCALES = (0.8, 1.3)  # photograph pixels per picture pixel
_TEST_SHARE = 0.375  # of the photographs' width


def draw_still(
    split: str,
    digit: int,
    photograph: int,
    centre: tuple[float, float],
    side: float,
    colour: tuple[float, float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """One picture of a digit over a photograph.

    Args:
      split: `train` or `test`: which digit images and which part of the photograph.
      digit: 0 to 9.
      photograph: 0 or 1.
      centre: (x, y) of the digit in pixels.
      side: of the digit in pixels.
      colour: of the digit, 0..255.
      rng: of the digit image, its angle, and the window of the photograph.

    Returns:
      uint8 [SIDE, SIDE, 3].
    """
    (background,) = draw_window(split, photograph, np.zeros((1, 2)), rng)
    ink = choose_digit(split, digit, rng)
    angle = np.radians(rng.uniform(*ANGLES))
    alpha = place_digit(ink, centre, side / MASTER, angle)[..., None]
    return np.rint(background * (1 - alpha) + np.array(colour) * alpha).astype(np.uint8)


def choose_digit(split: str, digit: int, rng: np.random.Generator) -> np.ndarray:
    """Ink of one enlarged digit, float32 [MASTER, MASTER]; every fourth image is for test."""
    images, classes, _ = bundled_images()
    ids = np.flatnonzero(classes == digit)
    for_test = np.arange(len(ids)) % 4 == 3
    image = images[rng.choice(ids[for_test == (split == "test")])]
    small = Image.fromarray(np.pad(image, 1).astype(np.float32))
    ink = np.asarray(small.resize((MASTER, MASTER), Image.Resampling.BICUBIC))
    return np.clip((ink - 0.25) / 0.35, 0, 1).astype(np.float32)


def draw_photograph(rng: np.random.Generator) -> int:
    """Which of the photographs: 0 a temple, 1 flowers."""
    return int(rng.integers(len(bundled_images()[2])))


def draw_window(
    split: str, number: int, drift_T2: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A window that drifts over a photograph.

    Args:
      split: training sees the left part of the photographs, test the right one.
      number: of the photograph.
      drift_T2: (x, y) of the camera in every frame, pixels.
      rng: of scale and place.

    Returns:
      uint8 [T, SIDE, SIDE, 3].
    """
    photograph = bundled_images()[2][number]
    border = round(photograph.shape[1] * (1 - _TEST_SHARE))
    photograph = photograph[:, border:] if split == "test" else photograph[:, :border]
    scale = rng.uniform(*_SCALES)
    # The window must stay inside at both ends of the drift; +1 for the pixels of interpolation.
    reach = scale * np.abs(drift_T2).max(axis=0) + 1
    room = np.array([photograph.shape[1], photograph.shape[0]]) - scale * SIDE - 2 * reach
    corner_T2 = reach + rng.uniform(0, room) - scale * drift_T2
    image = Image.fromarray(photograph)
    frames = [
        image.transform(
            (SIDE, SIDE),
            Image.Transform.AFFINE,
            (scale, 0, x, 0, scale, y),
            Image.Resampling.BILINEAR,
        )
        for x, y in corner_T2
    ]
    return np.rint(np.stack(frames) * _DIMMING).astype(np.uint8)


def place_digit(
    ink: np.ndarray, centre: tuple[float, float], scale: float, angle: float
) -> np.ndarray:
    """The digit enlarged, turned clockwise and moved to `centre`: float32 [SIDE, SIDE] in 0..1."""
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    # Pillow wants the map from a pixel of the frame to one of the digit.
    half = MASTER / 2
    rows = (
        (cos, sin, half - cos * centre[0] - sin * centre[1]),
        (-sin, cos, half + sin * centre[0] - cos * centre[1]),
    )
    placed = Image.fromarray(ink).transform(
        (SIDE, SIDE), Image.Transform.AFFINE, (*rows[0], *rows[1]), Image.Resampling.BILINEAR
    )
    return np.asarray(placed)


@functools.cache
def bundled_images() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Digit images [N, 8, 8] in 0..1, their classes [N], and two photographs [H, W, 3]."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ValueError("demo data needs scikit-learn: pip install 'codecvit[demo]'") from error
    digits = load_digits()
    return digits.images / 16, digits.target, load_sample_images().images
