"""Image file -> RGB view -> patch sequence."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from ..sequence import PatchSequence
from .errors import MediaError
from .view import View

# What Pillow's readers raise on damaged files, besides its own errors (which are OSErrors). The
# last line comes from EXIF whose values are of other types than their tags.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError),
    *(TypeError, AttributeError, KeyError, ArithmeticError),
)


def read_image(path: str | os.PathLike[str], size: int) -> np.ndarray:
    """The centre of an image, its short side scaled to `size`.

    Args:
      path: any file that Pillow reads; of an animation the first frame.
      size: side of the view in pixels.

    Returns:
      uint8 [size, size, 3], RGB.

    Raises:
      MediaError: the file is missing, damaged, no image, or larger than Pillow's limit on pixels.
    """
    return centre_crop(open_image(path, path), size)


def open_image(
    file: str | os.PathLike[str] | BinaryIO, name: str | os.PathLike[str]
) -> Image.Image:
    """An image decoded, upright, in RGB.

    Args:
      file: a path or an open file.
      name: what messages call it.

    Raises:
      MediaError: as for `read_image`.
    """
    try:
        with Image.open(file) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise MediaError(
                    name, f"has {image.width} x {image.height} pixels, more than {limit}"
                )
            return upright_rgb(image)
    except MediaError:
        raise
    except _DAMAGE as error:
        raise MediaError(name, f"cannot be read as an image ({error})") from error


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """The centre of an RGB image, its short side scaled to `size` (bicubic): [size, size, 3]."""
    place = View("crop", size, 1).place(image.height, image.width)
    scaled = image.resize((place.scaled_width, place.scaled_height), Image.Resampling.BICUBIC)
    top, left = place.cut
    return np.asarray(scaled)[top : top + size, left : left + size]


def image_sequence(rgb_SS3: np.ndarray, patch: int) -> PatchSequence:
    """Cuts a view into patches at t = 0.

    Args:
      rgb_SS3: uint8, S a multiple of patch.
      patch: side of a patch in pixels.

    Returns:
      The patch sequence, (S / patch)^2 patches.
    """
    grid = len(rgb_SS3) // patch
    patches = (
        rgb_SS3.reshape(grid, patch, grid, patch, 3).swapaxes(1, 2).reshape(-1, patch, patch, 3)
    )
    h, w = np.divmod(np.arange(grid**2, dtype=np.int32), grid)
    return PatchSequence(patches, np.stack([np.zeros_like(h), h, w], axis=1))


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode, turned as its EXIF says, in RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow would cut 16-bit grey at 255, which is white nearly everywhere.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
