"""Which frames of a video are sampled, from its packets alone: nothing is decoded here.

Shape suffixes: N frames of the video, M sampled frames, G groups of pictures.
"""

from __future__ import annotations

import dataclasses

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream


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


def sample_ids(
    seconds_N: np.ndarray, num_frames: int, start: float | None, end: float | None
) -> np.ndarray:
    """The first and the last frame of [start, end) and evenly spaced ones between, by index.

    Args:
      seconds_N: times in display order, 0 at the first frame.
      num_frames: frames wanted, at least 1.
      start: seconds, or None for the beginning.
      end: seconds, or None for the end.

    Returns:
      int64 [M], strictly increasing, M = min(num_frames, frames inside): none is repeated. Empty if
      there are none.
    """
    inside_N = np.ones(len(seconds_N), bool)
    if start is not None:
        inside_N &= seconds_N >= start
    if end is not None:
        inside_N &= seconds_N < end
    ids = np.flatnonzero(inside_N)
    count = min(num_frames, len(ids))
    return ids[np.arange(count) * (len(ids) - 1) // max(count - 1, 1)]
