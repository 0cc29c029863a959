"""Encoded pictures: what is stored of an image file, and the view that a model gets of it."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from ..codec.image import centre_crop
from .augment import AugmentConfig
from .colours import change_colours

_KEPT_FORMATS = ("JPEG", "PNG")
_QUALITY = 95
# As in the published runs: of a picture 3 : 2 a try in twelve fits, of 16 : 9 hardly any.
_TRIES = 100


def stored_picture(data: bytes, image: Image.Image, longest_short_side: int) -> bytes:
    """The bytes that a record keeps of an image: the file itself where that is small enough.

    Args:
      data: the image file...
      image: ...and what `open_image` made of it.
      longest_short_side: a picture whose short side has more pixels is scaled down to it (bicubic)
        and stored as a JPEG of quality 95 without chroma subsampling, as is one that is neither
        JPEG nor PNG.
    """
    with Image.open(io.BytesIO(data)) as file:
        kept = file.format in _KEPT_FORMATS
    short_side = min(image.size)
    if kept and short_side <= longest_short_side:
        return data
    if short_side > longest_short_side:
        scale = longest_short_side / short_side
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY, subsampling="4:4:4")
    return file.getvalue()


def see_picture(
    image: Image.Image, size: int, config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """The view of a picture, cropped and with its colours changed: uint8 [size, size, 3].

    Args:
      image, size, config, rng: as for `crop_picture`.
    """
    return change_colours(crop_picture(image, size, config, rng), config, rng)


def crop_picture(
    image: Image.Image, size: int, config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """The view of a picture: its centre, or a random crop (Szegedy et al. 2015, arXiv 1409.4842).

    Args:
      image: RGB.
      size: side of the view in pixels.
      config: without a crop the centre is taken.
      rng: of this example.

    Returns:
      uint8 [size, size, 3].
    """
    if not config.crops:
        return centre_crop(image, size)
    width, height = image.size
    low, high = (math.log(bound) for bound in config.crop_aspect)
    for _ in range(_TRIES):
        area = rng.uniform(*config.crop_area) * width * height
        aspect = math.exp(rng.uniform(low, high))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            box = (left, top, left + w, top + h)
            return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return centre_crop(image, size)  # long and narrow: no such crop fits
