"""Decodes the sampled frames of a video, and no more than it must.

Frames are scaled, cropped and turned as they come out of the decoder, so that at most one full-size
frame is held.

Shape suffixes: M sampled frames, T = M - 1 pairs of them, 3 the planes Y, U, V, H and W the view in
pixels, N motion blocks of a frame.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from .bitstream import CODED_SIGNALS, CodedMotion
from .colour import YuvCode
from .container import decode_tolerantly, open_video
from .errors import MediaError
from .image_folder import ImageFolder
from .sampling import FramePlan, PacketIndex, Sampling, plan_frames, read_index
from .view import Placement, View, ViewScaler

_RATE_OF_TIMELESS_STREAMS = 25  # FFmpeg's own default


@dataclasses.dataclass(frozen=True, eq=False)
class SampledFrames:
    """The sampled frames of one video, in display order.

    Attributes:
      yuv_M3HW: uint8, YUV 4:4:4.
      code: what the YUV numbers mean.
      placement: where the picture lies in the view.
      ids_M: int64, index of each frame in display order.
      seconds_M: float64, time since the first frame of the file.
      partner_luma_THW: uint8, luma of the frame that each sample after the first is compared with;
        None where that is the sample before it, for all.
      gaps_T: float64, seconds between the two.
      pict_types_M: "I", "P", "B" or another letter of FFmpeg's, "" where the file states none.
      coded_vectors_TN2: float32, motion that the file itself states, if asked for.
    """

    yuv_M3HW: np.ndarray
    code: YuvCode
    placement: Placement
    ids_M: np.ndarray
    seconds_M: np.ndarray
    partner_luma_THW: np.ndarray | None
    gaps_T: np.ndarray
    pict_types_M: tuple[str, ...]
    coded_vectors_TN2: np.ndarray | None = None


def decode_frames(
    path: str | os.PathLike[str], sampling: Sampling, view: View, coded_vectors: bool = False
) -> SampledFrames:
    """Decodes the sampled frames of a video file or of a folder of numbered images.

    Only groups of pictures with a wanted frame are read, and in them only frames that others refer
    to. Where the file does not allow that (times missing or repeated, damage), every frame is
    decoded instead; on a healthy file both ways give the same bytes.

    Args:
      path: any file that FFmpeg reads, or an image folder that states its rate.
      sampling: which frames.
      view: their geometry and size.
      coded_vectors: also collect the motion vectors of the file, for which every frame is decoded.

    Returns:
      The frames.

    Raises:
      MediaError: the file cannot be opened, has no video, no usable frame, or none between start
        and end; or its codec states no motion vectors, if these are wanted.
    """
    if Path(path).is_dir():
        return _read_folder(path, sampling, view, coded_vectors)
    with open_video(path) as (container, stream):
        if coded_vectors and stream.codec_context.name not in CODED_SIGNALS:
            raise _no_vectors(path, f"is coded in {stream.codec_context.name}")
        index = read_index(container, stream)
    found = None
    if index.usable and not coded_vectors:
        with open_video(path) as (container, stream):
            found = _decode_wanted(path, container, stream, index, sampling, view)
    if found is None:
        found = decode_sequentially(path, sampling, view, index.count, coded_vectors)
    return found


class _Collector:
    """Views of the wanted frames, in the order of a plan."""

    def __init__(
        self, path: str | os.PathLike[str], plan: FramePlan, seconds_N: np.ndarray, view: ViewScaler
    ) -> None:
        self.path = path
        self.plan = plan
        self.seconds_N = seconds_N
        self.view = view
        self._place_of = {int(index): place for place, index in enumerate(plan.ids_M)}
        self._missing = {int(index) for index in plan.all_ids}
        self._yuv_M3HW: np.ndarray | None = None
        self._pict_types: dict[int, str] = {}
        # Of a partner only the luma is ever looked at.
        self._luma: dict[int, np.ndarray] = {}

    def add(self, index: int, frame: VideoFrame) -> None:
        try:
            self.view.prepare(frame)
        except ValueError as error:
            raise MediaError(self.path, str(error)) from error
        shape = self.view.placement.height, self.view.placement.width
        if index in self._place_of:
            if self._yuv_M3HW is None:
                self._yuv_M3HW = np.empty((len(self.plan.ids_M), 3, *shape), np.uint8)
            self.view.write(frame, self._yuv_M3HW[self._place_of[index]])
            kind = PictureType(frame.pict_type)
            self._pict_types[index] = "" if kind == PictureType.NONE else kind.name
        else:
            self._luma[index] = np.empty(shape, np.uint8)
            self.view.write(frame, self._luma[index][None])
        self._missing.discard(index)

    def finish(self, coded_vectors_TN2: np.ndarray | None = None) -> SampledFrames | None:
        """The frames, or None if one of them is missing."""
        ids, partners = self.plan.ids_M, self.plan.partners_T
        if self._missing:
            return None
        return SampledFrames(
            self._yuv_M3HW,
            self.view.code,
            self.view.placement,
            ids,
            self.seconds_N[ids],
            None if np.array_equal(ids[:-1], partners) else self._partner_luma(),
            self.seconds_N[ids[1:]] - self.seconds_N[partners],
            tuple(self._pict_types[int(i)] for i in ids),
            coded_vectors_TN2,
        )

    def _partner_luma(self) -> np.ndarray:
        for index, place in self._place_of.items():
            self._luma[index] = self._yuv_M3HW[place, 0]
        return np.stack([self._luma[int(index)] for index in self.plan.partners_T])


def _read_folder(
    path: str | os.PathLike[str], sampling: Sampling, view: View, coded_vectors: bool
) -> SampledFrames:
    if coded_vectors:
        raise _no_vectors(path, "is a folder of images")
    folder = ImageFolder(path)
    plan = _require_plan(path, folder.seconds_N, sampling)
    collector = _Collector(path, plan, folder.seconds_N, ViewScaler(view, None))
    for index in plan.all_ids:
        collector.add(int(index), folder.read(int(index)))
    found = collector.finish()
    assert found is not None, "every image was read"
    return found


def _no_vectors(path: str | os.PathLike[str], why: str) -> MediaError:
    return MediaError(
        path,
        f"{why}, which states no motion vectors (only {', '.join(CODED_SIGNALS)} do): choose "
        "signal = estimate",
    )


def _decode_wanted(
    path: str | os.PathLike[str],
    container: InputContainer,
    stream: VideoStream,
    index: PacketIndex,
    sampling: Sampling,
    view: View,
) -> SampledFrames | None:
    """The fast way; None where a frame fails to come out whole, so that the caller decodes all."""
    seconds = (index.pts_N - index.pts_N[0]) * float(stream.time_base)
    plan = _require_plan(path, seconds, sampling)
    collector = _Collector(path, plan, seconds, ViewScaler(view, stream.sample_aspect_ratio))
    id_of = {int(index.pts_N[i]): int(i) for i in plan.all_ids}
    targets = np.array(list(id_of))
    # By display time: leading pictures of an open group belong to the key frame before it.
    group_of = np.maximum(np.searchsorted(index.keys_G, targets, side="right") - 1, 0)
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
                    collector.add(id_of[frame.pts], frame)
    except av.FFmpegError:
        return None
    return collector.finish()


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
    path: str | os.PathLike[str],
    sampling: Sampling,
    view: View,
    count: int = 0,
    coded_vectors: bool = False,
) -> SampledFrames:
    """Decodes everything and picks by output order; goes on after damage, dropping damaged frames.

    Args:
      path: the file.
      sampling: which frames.
      view: their geometry and size.
      count: guess at the number of frames; a second pass follows where the guess picks other frames
        than the truth.
      coded_vectors: also collect the motion vectors of the file.

    Returns:
      The frames, at least one.

    Raises:
      MediaError: no usable frame, or none between start and end.
    """
    with open_video(path) as (_, stream):
        rate = float(stream.average_rate or stream.guessed_rate or _RATE_OF_TIMELESS_STREAMS)
    plan = plan_frames(np.arange(count) / rate, sampling)
    for _ in range(2):
        times = []
        with open_video(path) as (container, stream):
            scaler = ViewScaler(view, stream.sample_aspect_ratio)
            coded = CodedMotion(stream, scaler, plan.ids_M) if coded_vectors else None
            # The times are known in the end only.
            collector = _Collector(path, plan, np.zeros(0), scaler)
            wanted = {int(i) for i in plan.all_ids}
            for position, frame in enumerate(decode_tolerantly(container, stream)):
                times.append(frame.time)
                if position in wanted:
                    collector.add(position, frame)
                if coded is not None:
                    coded.add(position, frame)
        if not times:
            raise MediaError(path, "holds no frame that can be decoded")
        collector.seconds_N = _seconds(times, rate)
        found = _require_plan(path, collector.seconds_N, sampling)
        if plan == found:
            frames = collector.finish(None if coded is None else coded.vectors())
            assert frames is not None, "every frame came out"
            return frames
        plan = found
    raise MediaError(path, "gives other frames each time it is decoded")


def _seconds(times: list[float | None], rate: float) -> np.ndarray:
    """Times since the first frame; by the frame rate where the file does not give all of them.

    Frames come out of the decoder in display order: times that do not are put in order.
    """
    if None in times:
        return np.arange(len(times)) / rate
    seconds = np.sort(np.array(times, np.float64))
    return seconds - seconds[0]


def _require_plan(
    path: str | os.PathLike[str], seconds_N: np.ndarray, sampling: Sampling
) -> FramePlan:
    plan = plan_frames(seconds_N, sampling)
    if len(plan.ids_M) == 0:
        span = f"start = {sampling.start} and end = {sampling.end} seconds"
        raise MediaError(path, f"has no frame between {span}; its last is at {seconds_N[-1]:.3f}")
    return plan
