"""A decoded clip: the sampled frames of one video, source of every mode and of the descriptor.

Shape suffixes: M sampled frames, 3 the planes Y, U, V, S side of the square view in pixels, N
patches of a frame.
"""

from __future__ import annotations

import dataclasses
import functools
import os

import numpy as np

from ..sequence import NUM_SLOTS
from .colour import YuvCode, yuv_to_rgb
from .decode import Sampling, decode_frames
from .motion import Motion, estimate_motion


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Sampled frames of one video, cut on a square view.

    Attributes:
      yuv_M3SS: uint8, YUV 4:4:4.
      code: what the YUV numbers mean.
      frame_ids_M: int64, index of each frame in the file, in display order.
      seconds_M: float64, time of each frame since the first frame of the file.
      patch: side of a patch in pixels; divides S.
    """

    yuv_M3SS: np.ndarray
    code: YuvCode
    frame_ids_M: np.ndarray
    seconds_M: np.ndarray
    patch: int

    def __len__(self) -> int:
        return len(self.yuv_M3SS)

    @property
    def size(self) -> int:
        """Side of the view in pixels."""
        return self.yuv_M3SS.shape[-1]

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        return self.size // self.patch

    @property
    def luma_MSS(self) -> np.ndarray:
        return self.yuv_M3SS[:, 0]

    @functools.cached_property
    def motion(self) -> Motion:
        """Motion between consecutive frames, a block per patch; computed when first asked for."""
        return estimate_motion(self.luma_MSS, self.grid)

    def rgb(self, frames: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The frames, all or some, as uint8 [len(frames), S, S, 3]."""
        return yuv_to_rgb(self.yuv_M3SS[frames], self.code)

    def patches(self, t: np.ndarray, h: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Patches at sampled frame t, patch row h, patch column w.

        Args:
          t, h, w: integers [L].

        Returns:
          uint8 [L, P, P, 3], RGB.
        """
        m, g, p = len(self), self.grid, self.patch
        blocks = self.yuv_M3SS.reshape(m, 3, g, p, g, p)
        return yuv_to_rgb(blocks[t, :, h, :, w], self.code)


def sample_clip(
    path: str | os.PathLike[str],
    num_frames: int = NUM_SLOTS,
    size: int = 224,
    patch: int = 14,
    start: float | None = None,
    end: float | None = None,
) -> Clip:
    """Decodes the sampled frames of a video, once.

    Args:
      path: any file that FFmpeg reads.
      num_frames: frames to sample evenly, 1 to 64; a shorter clip gives all of its frames, none
        twice.
      size: side of the view in pixels: the short side is scaled to it, then the centre is cut out.
      patch: side of a patch in pixels; divides size.
      start: seconds; frames before it are ignored.
      end: seconds; frames from it on are ignored.

    Returns:
      The clip.

    Raises:
      ValueError: an option is out of range.
      MediaError: the file is missing, damaged beyond use, or has no frame (between start and end).
    """
    if not 1 <= num_frames <= NUM_SLOTS:
        raise ValueError(f"num_frames = {num_frames} must lie in 1..{NUM_SLOTS}")
    check_geometry(size, patch)
    if start is not None and end is not None and start >= end:
        raise ValueError(f"start = {start} must be before end = {end}")
    found = decode_frames(path, Sampling(num_frames, size, start, end))
    return Clip(found.yuv_M3SS, found.code, found.ids_M, found.seconds_M, patch)


def check_geometry(size: int, patch: int) -> None:
    """Raises ValueError unless `size` is a positive multiple of a positive `patch`."""
    if patch < 1:
        raise ValueError(f"patch = {patch} must be at least 1")
    if size < patch or size % patch:
        below = max(size // patch, 1) * patch
        raise ValueError(
            f"size = {size} must be a multiple of patch = {patch}, for example {below}"
        )
