"""A selection as it plays: the video, its samples, their saliency and what is kept of them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .colour import yuv_to_rgb
from .container import decode_tolerantly, open_video
from .image_folder import ImageFolder
from .panels import Picked, tiles
from .view import View, ViewScaler

SUFFIXES = (".mp4", ".gif")
_GPL_FREE = ("libopenh264", "mpeg4")  # libx264 is GPL
_TILE = 160  # pixels: smaller views are enlarged to at least this


def animation(
    path: str | os.PathLike[str],
    view: View,
    picked: Picked,
    *,
    rate: float,
    seconds: float,
    heatmap: bool = False,
) -> Iterator[Image.Image]:
    """Four panels at a time: the video in the view, the last sample, its saliency, what is kept.

    The video is decoded from its beginning as it plays, one frame at a time.

    Args:
      path: the file, or image folder, that the clip was sampled from.
      view: that of the clip.
      picked: the clip and what was chosen of it.
      rate: pictures a second.
      seconds: longest duration.
      heatmap: lay the saliency over the sample as well.

    Yields:
      The pictures.
    """
    clip = picked.clip
    height, width = clip.luma_MHW.shape[1:]
    columns, zoom = (2 if width > height else 4), max(1, -(-_TILE // width))
    start = clip.seconds_M[0]
    count = max(1, int(min(clip.seconds_M[-1] - start, seconds) * rate) + 1)
    playing = _play(path, view)
    shown_at, shown = next(playing)
    upcoming = next(playing, None)
    for now in start + np.arange(count) / rate:
        while upcoming is not None and upcoming[0] <= now + 1e-6:
            shown_at, shown = upcoming
            upcoming = next(playing, None)
        sample = max(int(np.searchsorted(clip.seconds_M, now + 1e-6)) - 1, 0)
        sampled = picked.heated(sample) if heatmap else clip.rgb(np.array([sample]))[0]
        kept = int(picked.lit_MRC[sample].sum())
        yield tiles(
            [shown, sampled, picked.heat(sample), picked.lit(sample)],
            [
                f"video  {shown_at:.2f} s",
                f"sample {sample + 1} of {len(clip)}",
                "saliency",
                f"{picked.label(sample)}  ({kept})",
            ],
            columns,
            zoom,
        )


def gif_bytes(pictures: Iterator[Image.Image], rate: float) -> bytes:
    """The pictures as a GIF that plays forever, each with colours of its own."""
    first, *rest = (picture.quantize(256, dither=Image.Dither.NONE) for picture in pictures)
    file = io.BytesIO()
    duration = round(1000 / rate)
    first.save(file, "GIF", save_all=True, append_images=rest, duration=duration, loop=0)
    return file.getvalue()


def mp4_bytes(pictures: Iterator[Image.Image], rate: float) -> bytes:
    """The pictures as an MP4 by an encoder that is not GPL."""
    codec = next(name for name in _GPL_FREE if name in av.codecs_available)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = None
        for picture in pictures:
            frame = av.VideoFrame.from_image(picture)
            if stream is None:
                stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1000))
                stream.width, stream.height = (side // 2 * 2 for side in picture.size)
                stream.pix_fmt = "yuv420p"
                stream.bit_rate = 4_000_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _play(path: str | os.PathLike[str], view: View) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds since the first frame, uint8 [H, W, 3]) of every frame in turn."""
    scaler, first = ViewScaler(view, None), None
    if Path(path).is_dir():
        folder = ImageFolder(path)
        for number, seconds in enumerate(folder.seconds_N):
            yield float(seconds), _seen(scaler, folder.read(number))
        return
    with open_video(path) as (container, stream):
        scaler.pixel_aspect = float(stream.sample_aspect_ratio or 1)
        rate = float(stream.average_rate or 25)
        for number, frame in enumerate(decode_tolerantly(container, stream)):
            time = number / rate if frame.time is None else frame.time
            first = time if first is None else first
            yield time - first, _seen(scaler, frame)


def _seen(scaler: ViewScaler, frame: av.VideoFrame) -> np.ndarray:
    scaler.prepare(frame)
    placement = scaler.placement
    out = np.empty((3, placement.height, placement.width), np.uint8)
    scaler.write(frame, out)
    return yuv_to_rgb(out[None], scaler.code)[0]
