"""Which frames of a video are sampled, from its packets alone: nothing is decoded here.

Shape suffixes: N frames of the video, M sampled frames, T = M - 1 pairs of them, G groups of
pictures.
"""

from __future__ import annotations

import dataclasses

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from .config import require_choice

SAMPLINGS = ("index", "time")


@dataclasses.dataclass(frozen=True, eq=False)
class PacketIndex:
    """Times of a stream's pictures as its packets state them.

    Attributes:
      pts_N: int64, display order, in units of the stream's time base; empty where unusable.
      keys_G: int64, the same of the key frames.
      count: packets with pictures.
    """

    pts_N: np.ndarray
    keys_G: np.ndarray
    count: int

    @property
    def usable(self) -> bool:
        """Every picture has a time of its own and there is a key frame to seek to."""
        return len(self.pts_N) > 0 and len(self.keys_G) > 0


def read_index(container: InputContainer, stream: VideoStream) -> PacketIndex:
    """Reads all packets of `stream`, from where the container stands, without decoding.

    Headers are not trusted: after a truncation they count frames that are gone, and some containers
    count none.

    Args:
      container: the opened file.
      stream: one of its video streams.

    Returns:
      The index; without times where they are missing, repeated or guessed, or where reading fails
      half-way.
    """
    # AVI states no display times: FFmpeg guesses them, wrongly where B frames are packed into
    # the packet of another frame (DivX, Xvid).
    pts, keys, whole = [], [], container.format.name != "avi"
    try:
        for packet in container.demux(stream):
            # The last packet is an empty flush; discarded ones (edit lists) never come out of the
            # decoder.
            if packet.size == 0 or packet.is_discard:
                continue
            pts.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    except av.FFmpegError:
        whole = False
    if not whole or None in pts or len(set(pts)) != len(pts):
        return PacketIndex(np.zeros(0, np.int64), np.zeros(0, np.int64), len(pts))
    return PacketIndex(
        np.sort(np.array(pts, np.int64)), np.sort(np.array(keys, np.int64)), len(pts)
    )


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Which frames of a video are taken.

    Attributes:
      num_frames: at least 1; a shorter video gives all of its frames, none twice.
      by: "index" spaces them evenly by frame number, "time" by display time; they differ where the
        frame rate varies.
      start: seconds since the first frame, or None; frames before it are ignored.
      end: seconds, or None; frames from it on are ignored.
      pair_dt: seconds, or None: a sample further than this behind the one before it gets a partner,
        the frame nearest to this long before it.
      phase: None takes the first and the last frame and evenly spaced ones between; a share, 0 <=
        phase < 1, takes of each of `num_frames` equal stretches the frame at this share of it.
    """

    num_frames: int
    by: str = "index"
    start: float | None = None
    end: float | None = None
    pair_dt: float | None = None
    phase: float | None = None

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"num_frames = {self.num_frames} must be at least 1")
        require_choice("sampling", self.by, SAMPLINGS)
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"start = {self.start} must be before end = {self.end}")
        if self.phase is not None and not 0 <= self.phase < 1:
            raise ValueError(f"phase = {self.phase} must be None or a share with 0 <= phase < 1")


@dataclasses.dataclass(frozen=True, eq=False)
class FramePlan:
    """The frames to decode.

    Attributes:
      ids_M: int64, index of the samples in display order, strictly increasing.
      partners_T: int64, the frame that sample t + 1 is compared with: sample t or, with `pair_dt`,
        a later one.
    """

    ids_M: np.ndarray
    partners_T: np.ndarray

    @property
    def all_ids(self) -> np.ndarray:
        """Every frame that is wanted, once, in order."""
        return np.union1d(self.ids_M, self.partners_T)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FramePlan) and (
            np.array_equal(self.ids_M, other.ids_M)
            and np.array_equal(self.partners_T, other.partners_T)
        )


def plan_frames(seconds_N: np.ndarray, sampling: Sampling) -> FramePlan:
    """Chooses samples and their partners from the times of all frames.

    Args:
      seconds_N: times in display order, 0 at the first frame.
      sampling: which ones.

    Returns:
      The plan: evenly spaced frames of [start, end), as `sampling.phase` says; M = min(num_frames,
      frames inside), less where several even times have one nearest frame. Empty if no frame is
      inside.
    """
    inside_N = np.ones(len(seconds_N), bool)
    if sampling.start is not None:
        inside_N &= seconds_N >= sampling.start
    if sampling.end is not None:
        inside_N &= seconds_N < sampling.end
    candidates = np.flatnonzero(inside_N)
    count = min(sampling.num_frames, len(candidates))
    if sampling.by == "index" or count < 2:
        places = np.arange(count) * (len(candidates) - 1) // max(count - 1, 1)
        if sampling.phase is not None:
            places = ((np.arange(count) + sampling.phase) * len(candidates) / count).astype(int)
        ids = candidates[places]
    else:
        times = seconds_N[candidates]
        even = np.linspace(times[0], times[-1], count)
        if sampling.phase is not None:
            shares = (np.arange(count) + sampling.phase) / count
            even = times[0] + shares * (times[-1] - times[0])
        ids = candidates[np.unique(_nearest(times, even))]
    partners = ids[:-1]
    if sampling.pair_dt is not None and len(ids) > 1:
        close = _nearest(seconds_N, seconds_N[ids[1:]] - sampling.pair_dt)
        wide = np.diff(seconds_N[ids]) > sampling.pair_dt
        partners = np.where(wide, np.clip(close, ids[:-1], ids[1:] - 1), partners)
    return FramePlan(ids, partners)


def _nearest(sorted_times: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Index of the nearest entry of a sorted array, the earlier of two as near."""
    after = np.clip(np.searchsorted(sorted_times, times), 1, max(len(sorted_times) - 1, 1))
    after = np.minimum(after, len(sorted_times) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(times - sorted_times[before] <= sorted_times[after] - times, before, after)
