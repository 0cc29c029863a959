"""YUV to RGB by the matrix and the range that the video names.

Sampled frames stay YUV 4:4:4, in the range they came in, until patches are chosen. FFmpeg scales
planes four times faster than it makes RGB, only an eighth of the patches is kept, and its fast RGB
path darkens by up to 2 levels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange

# AVColorSpace number -> (Kr, Kb) of Y = Kr R + (1 - Kr - Kb) G + Kb B (ITU-T H.273, table 4).
# Untagged video is read as BT.601, as FFmpeg does.
_BT601 = (0.299, 0.114)
_LUMA_WEIGHTS = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}


@dataclasses.dataclass(frozen=True)
class YuvCode:
    """How YUV numbers mean colours.

    Attributes:
      kr: weight of red in luma.
      kb: weight of blue in luma.
      full: luma and chroma use 0..255, not 16..235 and 16..240.
    """

    kr: float
    kb: float
    full: bool

    @property
    def black(self) -> tuple[int, int, int]:
        """(Y, U, V) of black."""
        return (0 if self.full else 16), 128, 128

    @classmethod
    def of(cls, frame: VideoFrame) -> YuvCode:
        """The code that YUV made from `frame` has, its range kept."""
        kr, kb = _LUMA_WEIGHTS.get(int(frame.colorspace), _BT601)
        full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        return cls(kr, kb, full and not frame.format.is_rgb)


def yuv_to_rgb(yuv: np.ndarray, code: YuvCode) -> np.ndarray:
    """Converts pixel by pixel, so that a patch comes out as in its frame.

    Args:
      yuv: uint8 [N, 3, H, W].
      code: what the numbers mean.

    Returns:
      uint8 [N, H, W, 3].
    """
    luma, chroma = (1.0, 1.0) if code.full else (255 / 219, 255 / 224)
    kr, kb, kg = code.kr, code.kb, 1 - code.kr - code.kb
    y, u, v = (yuv[:, i].astype(np.float32) for i in range(3))
    y = (y - code.black[0]) * np.float32(luma)
    u = (u - 128) * np.float32(chroma)
    v = (v - 128) * np.float32(chroma)
    red = y + np.float32(2 * (1 - kr)) * v
    blue = y + np.float32(2 * (1 - kb)) * u
    green = y - np.float32(2 * kb * (1 - kb) / kg) * u - np.float32(2 * kr * (1 - kr) / kg) * v
    rgb = np.empty((*y.shape, 3), np.uint8)
    for channel, values in enumerate((red, green, blue)):
        rgb[..., channel] = np.clip(np.rint(values), 0, 255)
    return rgb
