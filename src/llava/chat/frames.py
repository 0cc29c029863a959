"""Sampled frames with the patches that were read, as HTML that needs no other file."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from PIL import Image

from ..report.pictures import Picture

CSS = """
.cv-frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 8px;
  max-height: 560px; overflow-y: auto; }
.cv-frames.cv-one { grid-template-columns: minmax(0, 480px); }
.cv-frames figure { margin: 0; }
.cv-frames .cv-shot { position: relative; line-height: 0; border-radius: 4px; overflow: hidden; }
.cv-frames img { display: block; width: 100%; height: 100%; margin: 0; border: 0; }
.cv-frames .cv-veil { position: absolute; inset: 0; image-rendering: pixelated; }
.cv-frames figure:hover .cv-veil { opacity: 0; }
.cv-frames figcaption, .cv-told { font-size: 12px; color: var(--body-text-color-subdued); }
.cv-told { margin: 0 0 6px; }
"""

_WIDTH = 320  # pixels of a frame; the page shows it at less than half of that
_WIDTH_ALONE = 960  # of an image
_QUALITY = 80
_VEIL = 150  # of 255: what was not read shows through, dimly


def frames_html(name: str, told: str, picture: Picture) -> str:
    """A picture of what was read.

    Args:
      name: of the file; from a stranger, and escaped here.
      told: how much was read, in words.
      picture: the frames.

    Returns:
      HTML: a line of text and the frames; what was not read is veiled until the pointer is on it.
    """
    count, height, width, _ = picture.frames_KHW3.shape
    shown = min(width, _WIDTH if count > 1 else _WIDTH_ALONE)
    size = (shown, max(1, round(height * shown / width)))
    figures = []
    for number, (frame_HW3, read_RC) in enumerate(
        zip(picture.frames_KHW3, picture.read_KRC, strict=True)
    ):
        image = Image.fromarray(frame_HW3).resize(size, Image.Resampling.LANCZOS)
        veil = "" if read_RC.all() else f'<img class="cv-veil" alt="" src="{_veil(read_RC)}">'
        time = ""
        if picture.seconds_K is not None:
            time = f"<figcaption>{picture.seconds_K[number]:.2f} s</figcaption>"
        figures.append(
            f'<figure><div class="cv-shot" style="aspect-ratio:{size[0]}/{size[1]}">'
            f'<img alt="" src="{_jpeg(image)}">{veil}</div>{time}</figure>'
        )
    text = f"<b>{html.escape(name)}</b>: {html.escape(told)}"
    if not picture.read_KRC.all():
        text += "; lit is what was read, the pointer lifts the veil"
    one = " cv-one" * (count == 1)
    return f'<p class="cv-told">{text}</p><div class="cv-frames{one}">{"".join(figures)}</div>'


def _veil(read_RC: np.ndarray) -> str:
    """A PNG with a pixel per patch: transparent where it was read."""
    pixels = np.zeros((*read_RC.shape, 4), np.uint8)
    pixels[..., 3] = np.where(read_RC, 0, _VEIL)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG")
    return _data("png", file)


def _jpeg(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return _data("jpeg", file)


def _data(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
