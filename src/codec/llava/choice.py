"""The patches of a video by the options of mosaics: the one function behind packs on disk, training
and evaluation, whether mosaics are made beforehand or on the fly."""

from __future__ import annotations

import os

from ..clip import Clip, sample_clip
from ..selection import Selection, choose
from .options import MosaicOptions
from .span import Span


def choose_patches(
    path: str | os.PathLike[str], options: MosaicOptions, span: Span | None = None
) -> Selection:
    """Decodes a video and chooses the patches that fill its mosaics.

    Args:
      path: any file that FFmpeg reads, or a folder of numbered images.
      options: how mosaics are made.
      span: the part of the video that is shown; None for all of it.

    Returns:
      The selection; `lay_out` puts it into cells.

    Raises:
      ValueError: the options do not fit the video.
      MediaError: the file is missing or damaged beyond use.
    """
    clip = sample_for_mosaics(path, options, span)
    return choose(clip, options.budget(clip), options.seed)


def sample_for_mosaics(
    path: str | os.PathLike[str], options: MosaicOptions, span: Span | None = None
) -> Clip:
    """The frames of a video that its mosaics are made of; arguments and errors as above."""
    start, end = (span or Span()).seconds(path)
    return sample_clip(
        path,
        options.num_frames,
        options.size,
        options.patch,
        start,
        end,
        geometry=options.geometry,
        sampling=options.sampling,
        config=options.config,
    )
