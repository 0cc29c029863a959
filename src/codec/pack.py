"""Video or image file -> patch sequences: the calls that most users need."""

from __future__ import annotations

import os

from ..sequence import NUM_SLOTS, PatchSequence
from .clip import check_num_frames, sample_clip
from .config import PRESETS, SelectionConfig, require_choice
from .image import image_sequence, read_image
from .selection import MODES, check_budget, select
from .view import View

_GROUPS = SelectionConfig(policy="groups")


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
    geometry: str = "crop",
    sampling: str = "index",
) -> PatchSequence:
    """Patches of one video that fit a token budget.

    For several modes of one file decode it once, with `sample_clip`, and call `select` on the clip.

    Args:
      path: any file that FFmpeg reads, or a folder of numbered images that states its frame rate
        (`codecvit.codec.image_folder`).
      mode: "codec", "frames" or "collage", see `codecvit.codec.selection.select`.
      num_frames: frames to sample evenly, 1 to 64; a shorter clip gives all of its frames, none
        twice.
      budget: most patches to keep, at least those of one frame.
      size: side of the view in pixels; `geometry` says which.
      patch: side of a patch in pixels; divides size.
      seed: draws the frames of modes "frames" and "collage"; None takes fixed ones. In the codec
        mode only the policy "random" draws.
      start: seconds; frames before it are ignored.
      end: seconds; frames from it on are ignored.
      config: what the codec mode values.
      geometry: "crop": short side scaled to `size`, centre cut out (the view of the published
        pretraining); "fit": long side scaled to `size`, both rounded to whole patches; "square":
        letterbox; "squash": both sides scaled to `size`.
      sampling: frames evenly spaced by "index" or by "time".

    Returns:
      The patch sequence; equal file and options give equal bytes.

    Raises:
      ValueError: an option is out of range; found before the file is opened, where it can be. The
        policy "groups" gives several sequences: `pack_groups`.
      MediaError: the file is missing, damaged beyond use, or has no frame (between start and end).
    """
    if config.policy == "groups":
        raise ValueError("policy = 'groups' gives several sequences: call pack_groups")
    check_options(mode, num_frames, budget, View(geometry, size, patch), config)
    clip = sample_clip(
        path,
        num_frames,
        size,
        patch,
        start,
        end,
        geometry=geometry,
        sampling=sampling,
        config=config,
    )
    return select(clip, mode, budget, seed)[0]


def pack_groups(
    path: str | os.PathLike[str],
    num_frames: int,
    budget: int = 2048,
    size: int = 224,
    patch: int = 14,
    start: float | None = None,
    end: float | None = None,
    config: SelectionConfig = _GROUPS,
    geometry: str = "crop",
    sampling: str = "index",
) -> list[PatchSequence]:
    """Patches of a long video: a sequence per group of consecutive samples.

    Args:
      path, size, patch, start, end, config, geometry, sampling: as for `pack_video`.
      num_frames: frames to sample evenly, any number.
      budget: most patches of each group, at least those of one frame.

    Returns:
      One sequence per group, in order; each has its first sample whole and slots of its own. For
      times of the samples call `sample_clip` and `choose_groups` instead.

    Raises:
      ValueError, MediaError: as `pack_video`.
    """
    check_options("codec", num_frames, budget, View(geometry, size, patch), config)
    clip = sample_clip(
        path,
        num_frames,
        size,
        patch,
        start,
        end,
        geometry=geometry,
        sampling=sampling,
        config=config,
    )
    return select(clip, "codec", budget)


def check_options(
    mode: str, num_frames: int, budget: int, view: View, config: SelectionConfig
) -> None:
    """Raises ValueError for options that cannot work, as far as that shows without a file."""
    require_choice("mode", mode, MODES)
    check_num_frames(num_frames, config)
    if view.geometry == "crop":
        side = view.size // view.patch
        check_budget(budget, side**2)
        if config.block > 1 and side % config.block:
            raise ValueError(
                f"block = {config.block} does not divide the view of {side} x {side} patches: "
                "choose another size"
            )


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
    View("crop", size, patch)
    return image_sequence(read_image(path, size), patch)
