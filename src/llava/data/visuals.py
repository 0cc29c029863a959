"""What one `<image>` or `<video>` shows, as patches with their places, as frames, or both.

A video is the same, byte for byte, whether its mosaics were stored or are made on the fly: both
come from `codec.llava.choice`, and where options say JPEG, pixels went through JPEG. Torch is not
needed here.

Shape suffixes: L patches, P side of a patch, 3 RGB or (t, h, w), G groups, M sampled frames, N
cells of all mosaics, H and W a picture in pixels.
"""

from __future__ import annotations

import dataclasses
import io
import math
from typing import TYPE_CHECKING

import numpy as np

from ...codec.image import open_image
from ...codec.llava.choice import choose_patches
from ...codec.llava.mosaic import lay_out, mosaic_cells
from ...codec.llava.options import MosaicOptions
from ...codec.llava.span import Span
from ...files import PathOrUrl, local_copy, open_read
from ..encoders.frames import Frames
from .patch_resize import resize_patches

if TYPE_CHECKING:
    from PIL import Image


@dataclasses.dataclass(frozen=True, eq=False)
class Visual:
    """An image, or a video with all its mosaics.

    Attributes:
      patches: uint8 [L, P, P, 3], RGB.
      positions: int32 [L, 3], (t, h, w): t a slot of the 64-slot time axis, h and w patch indices.
      groups: int32 [L], 0 to G-1, not decreasing: one per mosaic; an image is one group.
      seconds: float64 [G, 2], times of the first and the last frame that a group has patches of,
        since the first frame of the video, from the time stamps that the file states; None where
        they are not known (published packs) or do not exist (images).
      grid: (rows, columns) of patches in a frame.
      frames: for encoders that read frames. Only with them may there be no patches; such a visual
        is one group, its grid (0, 0): see `frame_visuals.frames_visual`.

    Raises:
      ValueError: arrays do not fit each other.
    """

    patches: np.ndarray
    positions: np.ndarray
    groups: np.ndarray
    seconds: np.ndarray | None
    grid: tuple[int, int]
    frames: Frames | None = None

    def __post_init__(self) -> None:
        length, (rows, columns) = len(self.patches), self.grid
        side = self.patches.shape[1] if self.patches.ndim == 4 else 0
        if (
            (length == 0 and self.frames is None)
            or self.patches.dtype != np.uint8
            or self.patches.shape[1:] != (side, side, 3)
        ):
            raise ValueError(
                "patches must be uint8 [L, P, P, 3] with L > 0, or frames besides, got "
                f"{self.patches.dtype} {list(self.patches.shape)}"
            )
        if self.positions.dtype != np.int32 or self.positions.shape != (length, 3):
            raise ValueError(
                f"positions must be int32 [{length}, 3] to match patches, got "
                f"{self.positions.dtype} {list(self.positions.shape)}"
            )
        if (self.positions < 0).any() or (self.positions[:, 1:] >= (rows, columns)).any():
            raise ValueError(f"positions lie outside of the grid of {rows} x {columns} patches")
        steps = np.diff(self.groups, prepend=0)
        if self.groups.shape != (length,) or ((steps != 0) & (steps != 1)).any():
            raise ValueError("groups must be [L] and count 0, 1, 2, ... without gaps")
        if self.seconds is not None and self.seconds.shape != (self.num_groups, 2):
            raise ValueError(
                f"seconds must be [{self.num_groups}, 2], one row per group, got "
                f"{list(self.seconds.shape)}"
            )

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def num_groups(self) -> int:
        """G."""
        return int(self.groups[-1]) + 1 if len(self.groups) else 1

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.patches.shape[1]

    def flat(self) -> np.ndarray:
        """The patches as the model takes them: uint8 [L, P*P*3], flat (row, column, channel)."""
        return self.patches.reshape(len(self), -1)


@dataclasses.dataclass(frozen=True)
class ImageRule:
    """The size at which images are read; one rule for training and inference.

    Attributes:
      size: 0 keeps an image's own size, its sides rounded to whole patches; a number makes it a
        square of this many pixels, whatever its aspect (the published "square").
      max_pixels: larger images are scaled down to it, keeping their aspect; the default is that of
        the published "native". Only with size 0.

    Raises:
      ValueError: a number is out of range.
    """

    size: int = 0
    max_pixels: int = 1600 * 1600

    def __post_init__(self) -> None:
        for name, least in (("size", 0), ("max_pixels", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least {least}")

    def grid(self, height: int, width: int, patch: int) -> tuple[int, int]:
        """(rows, columns) of patches that an image of this size in pixels becomes.

        Raises:
          ValueError: the size is no multiple of `patch`, or not even one patch is allowed.
        """
        if self.size:
            if self.size % patch:
                raise ValueError(f"size = {self.size} must be a multiple of patch = {patch}")
            return self.size // patch, self.size // patch
        most = self.max_pixels // patch**2
        if most < 1:
            raise ValueError(f"max_pixels = {self.max_pixels} is below one patch of {patch} pixels")
        scale = min(1.0, math.sqrt(self.max_pixels / (height * width))) / patch
        rows, columns = (max(1, round(side * scale)) for side in (height, width))
        if rows * columns > most:  # rounding went up, or a strip is thinner than a patch
            if rows > columns:
                rows = max(1, most // columns)
            else:
                columns = max(1, most // rows)
        return rows, columns


NATIVE = ImageRule()
"""An image's own size, up to the published cap."""


def image_visual(path: PathOrUrl, rule: ImageRule, patch: int) -> Visual:
    """Reads an image.

    Args:
      path: file or URL of anything that Pillow reads; of an animation the first frame.
      rule: at which size.
      patch: side of a patch in pixels.

    Returns:
      One group at t = 0, patches in reading order; no times.

    Raises:
      MediaError: the file is damaged, no image, or larger than Pillow's limit on pixels.
      OSError: it cannot be read.
    """
    with open_read(path) as file:
        image = open_image(file, path)
    return picture_visual(image, rule, patch)


def picture_visual(image: Image.Image, rule: ImageRule, patch: int) -> Visual:
    """An image in memory, as `image_visual` reads it from its file.

    Args:
      image: RGB, upright.
      rule, patch: as for `image_visual`.
    """
    rows, columns = rule.grid(image.height, image.width, patch)
    size = (columns * patch, rows * patch)
    if image.size != size:
        image = image.resize(size, resample=3)  # bicubic; its code is the same in every Pillow
    h, w = np.divmod(np.arange(rows * columns, dtype=np.int32), columns)
    return Visual(
        cut_cells(np.asarray(image), patch),
        np.stack([np.zeros_like(h), h, w], axis=1),
        np.zeros(rows * columns, np.int32),
        None,
        (rows, columns),
    )


def video_visual(
    path: PathOrUrl,
    options: MosaicOptions,
    patch: int | None = None,
    span: Span | None = None,
) -> Visual:
    """Packs a video on the fly: the patches of the mosaics that `options` would make of it.

    Args:
      path: a video file or its URL, or a folder of numbered images.
      options: how mosaics are made.
      patch: side of the encoder's patch; None: as in `options`.
      span: the part of the video that is shown; None for all of it.

    Returns:
      One group per mosaic, with times. As `mosaic_visual` of a pack of these options, byte for
      byte; options with `lossless` spare the detour through JPEG.

    Raises:
      ValueError: the options do not fit the video.
      MediaError: the file is missing or damaged beyond use.
      OSError: a URL cannot be fetched.
    """
    with local_copy(path) as local:
        mosaics = lay_out(choose_patches(local, options, span), options.num_images)
    clip, count = mosaics.clip, mosaics.count
    if options.png:
        patches = clip.patches(*mosaics.thw_N3.T)
    else:
        place = mosaic_cells(clip)
        pictures = (open_image(io.BytesIO(file), path) for file in mosaics.files(png=False))
        cells = [mosaic_patches(np.asarray(p), clip.patch, *place) for p in pictures]
        patches = np.concatenate(cells)
    return Visual(
        resize_patches(patches, patch or clip.patch),
        mosaics.positions_N3,
        mosaic_groups(len(patches), count),
        group_seconds(mosaics.thw_N3[:, 0], clip.seconds_M, count),
        (clip.rows, clip.columns),
    )


def mosaic_patches(picture_HW3: np.ndarray, patch: int, rows: slice, columns: slice) -> np.ndarray:
    """The cells of a mosaic, [L, P, P, 3]; `rows` and `columns` of patches hold them."""
    picture = picture_HW3[rows.start * patch : rows.stop * patch]
    return cut_cells(picture[:, columns.start * patch : columns.stop * patch], patch)


def cut_cells(picture_HW3: np.ndarray, patch: int) -> np.ndarray:
    """Cuts a picture into [L, P, P, 3] cells in reading order, as they are."""
    rows, columns = picture_HW3.shape[0] // patch, picture_HW3.shape[1] // patch
    cells = picture_HW3.reshape(rows, patch, columns, patch, 3).swapaxes(1, 2)
    return np.ascontiguousarray(cells).reshape(-1, patch, patch, 3)


def mosaic_groups(cells: int, count: int) -> np.ndarray:
    """int32 [N]: the mosaic of each cell, all mosaics being full."""
    return np.repeat(np.arange(count, dtype=np.int32), cells // count)


def group_seconds(sample_N: np.ndarray, seconds_M: np.ndarray, count: int) -> np.ndarray:
    """float64 [G, 2]: times of the first and the last sample in each mosaic.

    Args:
      sample_N: sample of each cell.
      seconds_M: time of each sample, rounded here to the microseconds that packs store.
      count: mosaics, all full.
    """
    times_GN = np.round(np.asarray(seconds_M, np.float64), 6)[sample_N].reshape(count, -1)
    return np.stack([times_GN.min(axis=1), times_GN.max(axis=1)], axis=1)
