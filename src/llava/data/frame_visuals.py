"""Visuals of models that read frames, with patches beside them or without. Torch is not needed.

The frames are decoded once for all encoders of frames. Patches are another decode: the codec's
view of a video has a size and a crop of its own.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ...codec.image import open_image
from ...codec.llava.options import MosaicOptions
from ...codec.llava.span import Span
from ...files import PathOrUrl, local_copy, open_read
from ..encoders.frames import Frames, picture_frames, shared_frames
from .visuals import ImageRule, Visual, picture_visual, video_visual

if TYPE_CHECKING:
    from PIL import Image


@dataclasses.dataclass(frozen=True)
class FrameRule:
    """Which frames encoders share; one rule for training and inference.

    Attributes:
      count: frames of a video; an image is one.
      size: their side in pixels.
      resize: "squash" or "crop", how they become square.
    """

    count: int
    size: int
    resize: str

    def video(self, path: PathOrUrl, span: Span | None = None) -> Frames:
        """Of a video, or the part of it that is shown; raises as `shared_frames`."""
        with local_copy(path) as local:
            start, end = (span or Span()).seconds(local)
            return shared_frames(local, self.count, self.size, self.resize, start, end)

    def picture(self, image: Image.Image) -> Frames:
        """Of an image in memory, RGB and upright."""
        return picture_frames(image, self.size, self.resize)


def frames_visual(frames: Frames) -> Visual:
    """A visual of frames alone."""
    return Visual(
        np.zeros((0, 1, 1, 3), np.uint8),
        np.zeros((0, 3), np.int32),
        np.zeros(0, np.int32),
        None,
        (0, 0),
        frames,
    )


def shown_image(
    path: PathOrUrl, images: ImageRule, patch: int | None, frames: FrameRule | None
) -> Visual:
    """An image file as a model sees it; see `shown_picture`, errors as `visuals.image_visual`."""
    with open_read(path) as file:
        image = open_image(file, path)
    return shown_picture(image, images, patch, frames)


def shown_picture(
    image: Image.Image, images: ImageRule, patch: int | None, frames: FrameRule | None
) -> Visual:
    """An image in memory as a model sees it.

    Args:
      image: RGB, upright.
      images: at which size its patches are read.
      patch: side of a patch in pixels; None: no patches are read.
      frames: how frames are read; None: no frames are.
    """
    if patch is None:
        assert frames is not None, "a model reads patches or frames"
        return frames_visual(frames.picture(image))
    visual = picture_visual(image, images, patch)
    if frames is None:
        return visual
    return dataclasses.replace(visual, frames=frames.picture(image))


def shown_video(
    path: PathOrUrl,
    options: MosaicOptions | None,
    patch: int | None,
    frames: FrameRule | None,
    span: Span | None = None,
) -> Visual:
    """A video file as a model sees it.

    Args:
      path: a video file or its URL, or a folder of numbered images.
      options: how its mosaics are made; only None where no patches are read.
      patch, frames: as for `shown_picture`.
      span: the part of the video that is shown; None for all of it.

    Raises:
      ValueError, MediaError, OSError: as `visuals.video_visual`.
    """
    with local_copy(path) as local:
        if patch is None:
            assert frames is not None, "a model reads patches or frames"
            return frames_visual(frames.video(local, span))
        assert options is not None, "patches need the options of mosaics"
        visual = video_visual(local, options, patch, span)
        return with_frames(visual, local, frames, span)


def with_frames(
    visual: Visual, path: PathOrUrl, frames: FrameRule | None, span: Span | None = None
) -> Visual:
    """A visual of patches with the frames of its video beside them; as it is where none are read.

    Args:
      visual: of the patches.
      path: of the video.
      frames, span: as for `shown_video`.
    """
    return (
        visual if frames is None else dataclasses.replace(visual, frames=frames.video(path, span))
    )
