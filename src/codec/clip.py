"""A decoded clip: the sampled frames of one video, source of every mode and of the descriptor.

Shape suffixes: M sampled frames, T = M - 1 pairs of them, 3 the planes Y, U, V, H and W the view in
pixels, N patches of the picture.
"""

from __future__ import annotations

import dataclasses
import functools
import os

import numpy as np

from ..sequence import NUM_SLOTS
from .colour import YuvCode, yuv_to_rgb
from .config import PRESETS, SelectionConfig
from .decode import decode_frames
from .motion import Motion, Samples, estimate_motion
from .saliency import saliency
from .sampling import Sampling
from .view import Placement, View


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Sampled frames of one video in one view, and what the selection is to value in them.

    Attributes:
      yuv_M3HW: uint8, YUV 4:4:4.
      code: what the YUV numbers mean.
      placement: where the picture lies in the view.
      frame_ids_M: int64, index of each frame in the file, in display order.
      seconds_M: float64, time of each frame since the first frame of the file.
      gaps_T: float64, seconds between a sample and the frame it is compared with.
      patch: side of a patch in pixels; divides H and W.
      config: options of the selection.
      partner_luma_THW: uint8, the frames that samples are compared with; None: the sample before.
      coded_vectors_TN2: float32, motion that the file states, with the signal "bitstream".
      pict_types_M: "I", "P", "B", ... of each frame; empty where nothing is known.
    """

    yuv_M3HW: np.ndarray
    code: YuvCode
    placement: Placement
    frame_ids_M: np.ndarray
    seconds_M: np.ndarray
    gaps_T: np.ndarray
    patch: int
    config: SelectionConfig = PRESETS["default"]
    partner_luma_THW: np.ndarray | None = None
    coded_vectors_TN2: np.ndarray | None = None
    pict_types_M: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.config.signal == "bitstream" and self.coded_vectors_TN2 is None:
            raise ValueError(
                "the clip was decoded without the file's motion vectors: give its configuration to "
                "sample_clip"
            )

    def __len__(self) -> int:
        return len(self.yuv_M3HW)

    @property
    def rows(self) -> int:
        """Patches from top to bottom of the view."""
        return self.yuv_M3HW.shape[2] // self.patch

    @property
    def columns(self) -> int:
        """Patches from left to right of the view."""
        return self.yuv_M3HW.shape[3] // self.patch

    @property
    def luma_MHW(self) -> np.ndarray:
        return self.yuv_M3HW[:, 0]

    @functools.cached_property
    def motion(self) -> Motion:
        """Motion of the patches that touch the picture; computed when first asked for."""
        rows, columns = self.placement.patches(self.patch, whole=False)
        box = (
            slice(None),
            slice(rows.start * self.patch, rows.stop * self.patch),
            slice(columns.start * self.patch, columns.stop * self.patch),
        )
        partners = self.partner_luma_THW
        samples = Samples(
            self.luma_MHW[box],
            None if partners is None else partners[box],
            self.coded_vectors_TN2,
            rows.stop - rows.start,
            columns.stop - columns.start,
        )
        return estimate_motion(samples, self.config.signal)

    @functools.cached_property
    def scores_MRC(self) -> np.ndarray:
        """Score of every patch, float32 [M, rows, columns]; -1 where there is no picture."""
        rows, columns = self.placement.patches(self.patch, whole=False)
        scores = np.full((len(self), self.rows, self.columns), -1.0, np.float32)
        motion = self.motion
        picture = saliency(motion, self.config).reshape(len(self), motion.rows, motion.columns)
        scores[:, rows, columns] = picture
        return scores

    @functools.cached_property
    def exists_RC(self) -> np.ndarray:
        """Patches of a frame that may be chosen at all, by `config.padding`; bool."""
        if self.config.padding == "keep":
            return np.ones((self.rows, self.columns), bool)
        exists = np.zeros((self.rows, self.columns), bool)
        exists[self.placement.patches(self.patch, whole=self.config.padding == "exclude")] = True
        return exists

    def part(self, start: int, stop: int) -> Clip:
        """The samples from `start` to before `stop`, scored as in the whole clip."""
        pairs = slice(start, stop - 1)
        partners, coded = self.partner_luma_THW, self.coded_vectors_TN2
        part = Clip(
            self.yuv_M3HW[start:stop],
            self.code,
            self.placement,
            self.frame_ids_M[start:stop],
            self.seconds_M[start:stop],
            self.gaps_T[pairs],
            self.patch,
            self.config,
            None if partners is None else partners[pairs],
            None if coded is None else coded[pairs],
            self.pict_types_M[start:stop],
        )
        part.__dict__["scores_MRC"] = self.scores_MRC[start:stop]
        return part

    def centre(self) -> Clip:
        """The largest square in the middle of the picture, for looks at a clip as a whole."""
        rows, columns = self.placement.rows, self.placement.columns
        height, width = rows.stop - rows.start, columns.stop - columns.start
        side = min(height, width)
        if self.yuv_M3HW.shape[2:] == (side, side):
            return self
        top, left = rows.start + (height - side) // 2, columns.start + (width - side) // 2
        box = (..., slice(top, top + side), slice(left, left + side))
        return dataclasses.replace(
            self,
            yuv_M3HW=self.yuv_M3HW[box],
            placement=Placement(side, side, side, side),
            patch=side,
            config=PRESETS["default"],
            partner_luma_THW=None,
        )

    def rgb(self, frames: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The frames, all or some, as uint8 [len(frames), H, W, 3]."""
        return yuv_to_rgb(self.yuv_M3HW[frames], self.code)

    def patches(self, t: np.ndarray, h: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Patches at sampled frame t, patch row h, patch column w.

        Args:
          t, h, w: integers [L].

        Returns:
          uint8 [L, P, P, 3], RGB.
        """
        p = self.patch
        blocks = self.yuv_M3HW.reshape(len(self), 3, self.rows, p, self.columns, p)
        return yuv_to_rgb(blocks[t, :, h, :, w], self.code)


def sample_clip(
    path: str | os.PathLike[str],
    num_frames: int = NUM_SLOTS,
    size: int = 224,
    patch: int = 14,
    start: float | None = None,
    end: float | None = None,
    *,
    geometry: str = "crop",
    sampling: str = "index",
    config: SelectionConfig = PRESETS["default"],
    phase: float | None = None,
    cut_at: float = 0.5,
) -> Clip:
    """Decodes the sampled frames of a video, once.

    Args:
      path: any file that FFmpeg reads, or a folder of numbered images that states its frame rate
        (`image_folder`).
      num_frames: frames to sample evenly; a shorter clip gives all of its frames, none twice. 1 to
        64, the slots on the time axis; any number with the policy "groups".
      size: side of the view in pixels.
      patch: side of a patch in pixels; divides size.
      start: seconds; frames before it are ignored.
      end: seconds; frames from it on are ignored.
      geometry: "crop", "fit", "square" or "squash", see `View`.
      sampling: evenly by "index" or by "time".
      config: options of the selection; some decide what has to be decoded.
      phase: shifts the samples in time, see `Sampling`.
      cut_at: where the geometry "crop" cuts, see `View`.

    Returns:
      The clip.

    Raises:
      ValueError: an option is out of range.
      MediaError: the file is missing, damaged beyond use, or has no frame (between start and end).
    """
    check_num_frames(num_frames, config)
    wanted = Sampling(num_frames, sampling, start, end, config.pair_dt, phase)
    view = View(geometry, size, patch, cut_at)
    found = decode_frames(path, wanted, view, coded_vectors=config.signal == "bitstream")
    return Clip(
        found.yuv_M3HW,
        found.code,
        found.placement,
        found.ids_M,
        found.seconds_M,
        found.gaps_T,
        patch,
        config,
        found.partner_luma_THW,
        found.coded_vectors_TN2,
        found.pict_types_M,
    )


def check_num_frames(num_frames: int, config: SelectionConfig) -> None:
    """Raises ValueError unless the samples fit on the time axis, or are cut into groups that do."""
    if num_frames < 1 or (num_frames > NUM_SLOTS and config.policy != "groups"):
        raise ValueError(
            f"num_frames = {num_frames} must lie in 1..{NUM_SLOTS}, or be cut into groups by "
            "policy = groups"
        )
