"""Video or image file -> patch sequence: the two calls that most users need."""

from __future__ import annotations

import os

from ..sequence import NUM_SLOTS, PatchSequence
from .clip import check_geometry, sample_clip
from .config import PRESETS, SelectionConfig
from .image import image_sequence, read_image
from .selection import check_selection, select


def pack_video(
    path: str | os.PathLike[str],
    mode: str = "codec",
    num_frames: int = NUM_SLOTS,
    budget: int = 2048,
    size: int = 224,
    patch: int = 14,
    seed: int | None = None,
    start: float | None = None,
    end: float | None = None,
    config: SelectionConfig = PRESETS["default"],
) -> PatchSequence:
    """Patches of one video that fit a token budget.

    Frames are scaled so that the short side is `size`, then cropped in the centre: the view of the
    published pretraining. For several modes of one file decode it once, with `sample_clip`, and
    call `select` on the clip.

    Args:
      path: any file that FFmpeg reads.
      mode: "codec", "frames" or "collage", see `codecvit.codec.selection.select`.
      num_frames: frames to sample evenly, 1 to 64; a shorter clip gives all of its frames, none
        twice.
      budget: most patches to keep, at least those of one frame.
      size: side of the square view in pixels.
      patch: side of a patch in pixels; divides size.
      seed: draws the frames of modes "frames" and "collage"; None takes fixed ones. The codec mode
        ignores it.
      start: seconds; frames before it are ignored.
      end: seconds; frames from it on are ignored.
      config: what the codec mode values.

    Returns:
      The patch sequence; equal file and options give equal bytes.

    Raises:
      ValueError: an option is out of range; found before the file is opened.
      MediaError: the file is missing, damaged beyond use, or has no frame (between start and end).
    """
    check_geometry(size, patch)
    check_selection(mode, budget, size // patch)
    clip = sample_clip(path, num_frames, size, patch, start, end)
    return select(clip, mode, budget, seed, config)


def pack_image(path: str | os.PathLike[str], size: int = 224, patch: int = 14) -> PatchSequence:
    """All patches of one image: short side scaled to `size` (bicubic), centre crop, t = 0.

    Args:
      path: any file that Pillow reads; its EXIF orientation is honoured, every colour mode becomes
        RGB.
      size: side of the square view in pixels.
      patch: side of a patch in pixels; divides size.

    Returns:
      The patch sequence, (size / patch)^2 patches.

    Raises:
      ValueError: size is no multiple of patch.
      MediaError: the file is missing, damaged, no image, or larger than Pillow's limit on pixels.
    """
    check_geometry(size, patch)
    return image_sequence(read_image(path, size), patch)
