"""Which frames of a video the encoders see, and their pixels: decoded once for all of them.

Training and evaluation come here alike, and nothing here is random. Torch is not needed.

Shape suffixes: F frames, S side in pixels, 3 RGB.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ...codec.colour import yuv_to_rgb
from ...codec.decode import decode_frames
from ...codec.image import centre_crop
from ...codec.sampling import Sampling
from ...codec.view import View
from ...files import PathOrUrl, local_copy

RESIZES = ("squash", "crop")


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
    """Frames of a video, or an image, which is one.

    Attributes:
      pixels: uint8 [F, S, S, 3], RGB.
      seconds: float64 [F], since the first frame of the file, not decreasing; None for an image.

    Raises:
      ValueError: arrays do not fit each other.
    """

    pixels: np.ndarray
    seconds: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        side = shape[1] if len(shape) == 4 else 0
        if self.pixels.dtype != np.uint8 or min(shape) < 1 or shape[1:] != (side, side, 3):
            raise ValueError(
                f"pixels must be uint8 [F, S, S, 3], got {self.pixels.dtype} {list(shape)}"
            )
        if self.seconds is not None and self.seconds.shape != shape[:1]:
            raise ValueError(
                f"seconds must be [{shape[0]}], one per frame, got {list(self.seconds.shape)}"
            )

    def __len__(self) -> int:
        return len(self.pixels)


def frame_indices(count: int, frames: int) -> np.ndarray:
    """Evenly spaced frames, the first and the last among them: int(linspace(0, count - 1, frames)).

    Reckoned in integers, so that no frame depends on rounding.

    Args:
      count: frames that there are, at least 1.
      frames: frames wanted, at least 1.

    Returns:
      int64 [frames], not decreasing; some repeat where `count` < `frames`.
    """
    if count < 1 or frames < 1:
        raise ValueError(f"count = {count} and frames = {frames} must be at least 1")
    return np.arange(frames) * (count - 1) // max(frames - 1, 1)


def shared_count(counts: Sequence[int]) -> int:
    """How many frames are decoded for encoders that see `counts` of them.

    The one that sees most sets the frames, every other takes each k-th of them, so that all see the
    same moments.

    Raises:
      ValueError: some count does not divide the largest.
    """
    if not counts or min(counts) < 1:
        raise ValueError(f"frames = {list(counts)} must be positive, one for each encoder")
    most = max(counts)
    if odd := [n for n in counts if most % n]:
        raise ValueError(
            f"frames = {list(counts)}: {odd[0]} does not divide {most}, the largest, so that no "
            f"stride gives {odd[0]} of {most} shared frames: choose divisors of {most}"
        )
    return most


def shared_frames(
    path: PathOrUrl,
    frames: int,
    size: int,
    resize: str = "squash",
    start: float | None = None,
    end: float | None = None,
) -> Frames:
    """Decodes a video once.

    Args:
      path: a video file or its URL, or a folder of numbered images that states its rate.
      frames: how many, see `shared_count`.
      size: S.
      resize: "squash" scales both sides to `size`; "crop" the short one, and takes the centre.
      start, end: seconds; frames before `start` and from `end` on are ignored.

    Returns:
      As many frames; a shorter video repeats some.

    Raises:
      ValueError: an option is out of range.
      MediaError: the file is missing, damaged beyond use, or has no frame between start and end.
      OSError: a URL cannot be fetched.
    """
    with local_copy(path) as local:
        return _decode(local, frames, size, _geometry(resize), start, end)


def _decode(
    path: str | os.PathLike[str],
    frames: int,
    size: int,
    geometry: str,
    start: float | None,
    end: float | None,
) -> Frames:
    sampling = Sampling(frames, "index", start, end)
    found = decode_frames(path, sampling, View(geometry, size, 1))
    # A short video gives each of its frames once.
    places = frame_indices(len(found.ids_M), frames)
    pixels = yuv_to_rgb(found.yuv_M3HW, found.code)
    return Frames(pixels[places], np.asarray(found.seconds_M, np.float64)[places])


def picture_frames(image: Image.Image, size: int, resize: str = "squash") -> Frames:
    """An image in memory, RGB and upright, as one frame."""
    if _geometry(resize) == "crop":
        pixels = centre_crop(image, size)
    else:
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    return Frames(np.ascontiguousarray(pixels)[None])


def _geometry(resize: str) -> str:
    if resize not in RESIZES:
        raise ValueError(f"resize = {resize!r} must be one of {RESIZES}")
    return resize
