"""A video file as FFmpeg opens it: its stream of pictures, and what can be decoded of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .errors import MediaError

_MAX_PIXELS = 1 << 27  # of one frame: 16,384 x 8,192


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
        # A few wrong bytes of a header must not claim gigabytes.
        stream.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}
        yield container, stream


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def decode_tolerantly(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Every frame in display order, without what is damaged."""
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
