"""Decodes the sampled frames of a video, and no more than it must.

Frames are scaled, cropped and turned as they come out of the decoder, so that at most one full-size
frame is held.

Shape suffixes: M sampled frames, 3 the planes Y, U, V, S side of the square view in pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from .colour import YuvCode
from .errors import MediaError
from .sampling import PacketIndex, read_index, sample_ids

_RATE_OF_TIMELESS_STREAMS = 25  # FFmpeg's own default


@dataclasses.dataclass(frozen=True, eq=False)
class SampledFrames:
    """The sampled frames of one video, in display order.

    Attributes:
      yuv_M3SS: uint8, YUV 4:4:4.
      code: what the YUV numbers mean.
      ids_M: int64, index of each frame in display order.
      seconds_M: float64, time since the first frame of the file.
    """

    yuv_M3SS: np.ndarray
    code: YuvCode
    ids_M: np.ndarray
    seconds_M: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sampling:
    """`num_frames` frames of [start, end) seconds, each as a view of size x size pixels."""

    num_frames: int
    size: int
    start: float | None = None
    end: float | None = None


def decode_frames(path: str | os.PathLike[str], sampling: Sampling) -> SampledFrames:
    """Decodes the sampled frames of a video file.

    Only groups of pictures with a wanted frame are read, and in them only frames that others refer
    to. Where the file does not allow that (times missing or repeated, damage), every frame is
    decoded instead; on a healthy file both ways give the same bytes.

    Args:
      path: any file that FFmpeg reads.
      sampling: which frames, and their size.

    Returns:
      The frames.

    Raises:
      MediaError: the file cannot be opened, has no video, no usable frame, or none between start
        and end.
    """
    with open_video(path) as (container, stream):
        index = read_index(container, stream)
    found = None
    if index.usable:
        with open_video(path) as (container, stream):
            found = _decode_wanted(path, container, stream, index, sampling)
    if found is None:
        found = decode_sequentially(path, sampling, index.count)
    return found


@contextlib.contextmanager
def open_video(path: str | os.PathLike[str]) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file and its first video stream that is not a cover picture; closes it in the end.

    Raises:
      MediaError: the file cannot be opened or has no video.
    """
    try:
        # Old files carry titles that are not UTF-8; nobody reads them here.
        container = av.open(os.fspath(path), metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise MediaError(
            path, f"cannot be opened as a video ({error.strerror or error})"
        ) from error
    with container:
        streams = [s for s in container.streams.video if not _is_cover(s)]
        if not streams:
            raise MediaError(path, "has no video stream")
        stream = streams[0]
        if stream.codec_context is None:
            raise MediaError(path, "has a video stream that no decoder of this FFmpeg reads")
        # Work is spread over files, not over threads within one: two threads cost up to half as
        # much again.
        stream.codec_context.thread_count = 1
        yield container, stream


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _decode_wanted(
    path: str | os.PathLike[str],
    container: InputContainer,
    stream: VideoStream,
    index: PacketIndex,
    sampling: Sampling,
) -> SampledFrames | None:
    """The fast way; None where a frame fails to come out whole, so that the caller decodes all."""
    seconds = (index.pts_N - index.pts_N[0]) * float(stream.time_base)
    ids = _require_ids(path, seconds, sampling)
    targets = index.pts_N[ids]
    # By display time: leading pictures of an open group belong to the key frame before it.
    group_of = np.maximum(np.searchsorted(index.keys_G, targets, side="right") - 1, 0)
    view = View(sampling.size, stream.sample_aspect_ratio)
    planes: dict[int, np.ndarray] = {}
    try:
        for group in np.unique(group_of):
            wanted = {int(pts) for pts in targets[group_of == group]}
            key = int(index.keys_G[group])
            container.seek(key, stream=stream, backward=True)
            last = key - 1
            for frame in _decode_group(container, stream, wanted):
                if frame.pts is not None and frame.pts < key:
                    continue  # a leading picture, which needs the group before
                if frame.pts is None or frame.pts <= last:
                    return None  # the decoder's order is the truth, so the times are wrong
                last = frame.pts
                if frame.pts in wanted and not frame.is_corrupt:
                    planes[frame.pts] = view(frame)
    except av.FFmpegError:
        return None
    if len(planes) != len(targets):
        return None
    return SampledFrames(np.stack([planes[int(t)] for t in targets]), view.code, ids, seconds[ids])


def _decode_group(
    container: InputContainer, stream: VideoStream, wanted: set[int]
) -> Iterator[VideoFrame]:
    """Yields frames from where the container stands until all with a wanted pts came out."""
    missing = set(wanted)
    context = stream.codec_context
    for packet in container.demux(stream):
        # A frame that nothing refers to is skipped unless wanted; the flush lets all of them out.
        context.skip_frame = "DEFAULT" if packet.size == 0 or packet.pts in wanted else "NONREF"
        for frame in packet.decode():
            missing.discard(frame.pts)
            yield frame
        if not missing:
            return


def decode_sequentially(
    path: str | os.PathLike[str], sampling: Sampling, count: int = 0
) -> SampledFrames:
    """Decodes everything and picks by output order; goes on after damage, dropping damaged frames.

    Args:
      path: the file.
      sampling: which frames, and their size.
      count: guess at the number of frames; a second pass follows where the guess picks other frames
        than the truth.

    Returns:
      The frames, at least one.

    Raises:
      MediaError: no usable frame, or none between start and end.
    """
    with open_video(path) as (_, stream):
        rate = float(stream.average_rate or stream.guessed_rate or _RATE_OF_TIMELESS_STREAMS)
    ids = sample_ids(np.arange(count) / rate, sampling.num_frames, sampling.start, sampling.end)
    for _ in range(2):
        planes, times = [], []
        with open_video(path) as (container, stream):
            view = View(sampling.size, stream.sample_aspect_ratio)
            wanted = {int(i) for i in ids}
            for position, frame in enumerate(_decode_tolerantly(container, stream)):
                times.append(frame.time)
                if position in wanted:
                    planes.append(view(frame))
        if not times:
            raise MediaError(path, "holds no frame that can be decoded")
        seconds = _seconds(times, rate)
        found = _require_ids(path, seconds, sampling)
        if np.array_equal(ids, found):
            return SampledFrames(np.stack(planes), view.code, ids, seconds[ids])
        ids = found
    raise MediaError(path, "gives other frames each time it is decoded")


def _decode_tolerantly(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            return  # the container ends in damage: what came before it stands
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue  # one damaged packet: the decoder finds its feet at a later one
        yield from (frame for frame in frames if not frame.is_corrupt)


def _seconds(times: list[float | None], rate: float) -> np.ndarray:
    """Times since the first frame; by the frame rate where the file does not give all of them.

    Frames come out of the decoder in display order: times that do not are put in order.
    """
    if None in times:
        return np.arange(len(times)) / rate
    seconds = np.sort(np.array(times, np.float64))
    return seconds - seconds[0]


def _require_ids(
    path: str | os.PathLike[str], seconds: np.ndarray, sampling: Sampling
) -> np.ndarray:
    ids = sample_ids(seconds, sampling.num_frames, sampling.start, sampling.end)
    if len(ids) == 0:
        span = f"start = {sampling.start} and end = {sampling.end} seconds"
        raise MediaError(path, f"has no frame between {span}; its last is at {seconds[-1]:.3f}")
    return ids


class View:
    """Frame -> uint8 [3, S, S]: short side scaled to S, centre crop, turned upright.

    Each frame's own size counts, so a stream may change size on its way. `code` holds the colours
    of the first frame.
    """

    def __init__(self, size: int, pixel_aspect: Fraction | None) -> None:
        self.size = size
        self.pixel_aspect = float(pixel_aspect or 1)
        self.code: YuvCode | None = None
        self._scaler = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        height, width = scaled_size(frame.height, frame.width * self.pixel_aspect, self.size)
        if self.code is None:
            self.code = YuvCode.of(frame)
        span = "JPEG" if self.code.full else "MPEG"
        # RGB sources need a matrix; all others keep theirs.
        scaled = self._scaler.reformat(
            frame,
            width=width,
            height=height,
            # The old names of full-range formats: PyAV before 17 goes by them alone.
            format="yuvj444p" if frame.format.name.startswith("yuvj") else "yuv444p",
            dst_colorspace="ITU601" if frame.format.is_rgb else None,
            src_color_range=span,
            dst_color_range=span,
        )
        top, left = (height - self.size) // 2, (width - self.size) // 2
        planes = np.empty((3, self.size, self.size), np.uint8)
        for plane, out in zip(scaled.planes, planes, strict=True):
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
            out[:] = rows[top : top + self.size, left : left + self.size]
        # The decoder leaves the turn that a phone recorded to the viewer. FFmpeg counts it
        # anticlockwise, as rot90 does.
        return np.rot90(planes, frame.rotation // 90, axes=(1, 2))


def scaled_size(height: float, width: float, size: int) -> tuple[int, int]:
    """(height, width) with the short side `size`, the long side in proportion and rounded."""
    short = min(height, width)
    return round(height * size / short), round(width * size / short)
