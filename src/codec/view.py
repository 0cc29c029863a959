"""Which part of a frame is seen, at which size: the geometry of a view, and its pixels.

Shape suffixes: 3 the planes Y, U, V, H and W the view in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from .colour import YuvCode
from .config import require_choice

GEOMETRIES = ("crop", "fit", "square", "squash")
_MAX_GROWTH = 64  # scaled pixels per pixel of the view: a strip scaled by its short side is endless


@dataclasses.dataclass(frozen=True)
class View:
    """A geometry with its sizes.

    Attributes:
      geometry: "crop": the short side is scaled to `size`, the centre is cut out (the view of the
        published pretraining); "fit": the long side is scaled to `size`, the short one in
        proportion and rounded to whole patches, nothing is cut or padded; "square": letterbox, the
        long side is scaled to `size` and the rest is black (the published LLaVA assets); "squash":
        both sides are scaled to `size`, whatever the aspect (what many frame encoders are fed).
      size: pixels.
      patch: side of a patch in pixels; divides size.
      cut_at: where "crop" cuts along the long side: 0 its beginning (left or top), 0.5 the centre,
        1 its end.
    """

    geometry: str = "crop"
    size: int = 224
    patch: int = 14
    cut_at: float = 0.5

    def __post_init__(self) -> None:
        require_choice("geometry", self.geometry, GEOMETRIES)
        if not 0 <= self.cut_at <= 1 or (self.cut_at != 0.5 and self.geometry != "crop"):
            raise ValueError(
                f"cut_at = {self.cut_at} must lie in 0..1, and be 0.5 unless geometry = 'crop' "
                f"(it is {self.geometry!r})"
            )
        if self.patch < 1:
            raise ValueError(f"patch = {self.patch} must be at least 1")
        if self.size < self.patch or self.size % self.patch:
            below = max(self.size // self.patch, 1) * self.patch
            raise ValueError(
                f"size = {self.size} must be a multiple of patch = {self.patch}, for example "
                f"{below}"
            )

    def place(self, height: float, width: float) -> Placement:
        """Where an upright picture of these sides, with square pixels, goes."""
        long, short = max(height, width), min(height, width)
        if self.geometry == "crop":
            scaled = _scaled(height, width, self.size / short)
            return Placement(self.size, self.size, *scaled, self.cut_at)
        if self.geometry == "square":
            return Placement(self.size, self.size, *_scaled(height, width, self.size / long))
        if self.geometry == "squash":
            return Placement(self.size, self.size, self.size, self.size)
        other = max(1, round(short * self.size / long / self.patch)) * self.patch
        sides = (self.size, other) if height >= width else (other, self.size)
        return Placement(*sides, *sides)


@dataclasses.dataclass(frozen=True)
class Placement:
    """A scaled picture in the middle of a view, cut or padded to it.

    Attributes:
      height, width: of the view, pixels.
      scaled_height, scaled_width: of the whole picture, pixels.
      cut_at: where a picture larger than the view is cut, see `View`.
    """

    height: int
    width: int
    scaled_height: int
    scaled_width: int
    cut_at: float = 0.5

    @property
    def top(self) -> int:
        """First row of the view with picture."""
        return max(0, (self.height - self.scaled_height) // 2)

    @property
    def left(self) -> int:
        """First column of the view with picture."""
        return max(0, (self.width - self.scaled_width) // 2)

    @property
    def rows(self) -> slice:
        """Rows of the view with picture."""
        return slice(self.top, self.top + min(self.height, self.scaled_height))

    @property
    def columns(self) -> slice:
        """Columns of the view with picture."""
        return slice(self.left, self.left + min(self.width, self.scaled_width))

    def patches(self, patch: int, whole: bool) -> tuple[slice, slice]:
        """(rows, columns) of patches that lie wholly in the picture, or at least touch it."""
        bounds = []
        for pixels in (self.rows, self.columns):
            if whole:
                low = -(-pixels.start // patch)
                bounds.append(slice(low, max(low, pixels.stop // patch)))
            else:
                bounds.append(slice(pixels.start // patch, -(-pixels.stop // patch)))
        return bounds[0], bounds[1]

    @property
    def cut(self) -> tuple[int, int]:
        """First row and column of the scaled picture that is seen."""
        return (
            max(0, int((self.scaled_height - self.height) * self.cut_at)),
            max(0, int((self.scaled_width - self.width) * self.cut_at)),
        )


class ViewScaler:
    """Frame -> uint8 [3, H, W], YUV 4:4:4, as `view` sees it, turned upright and scaled.

    The first frame decides on the size of the view and, unless it is cropped, on the place of the
    picture in it: a stream may change size on its way. `placement` and `code` (what the numbers
    mean) are those of the first frame.
    """

    def __init__(self, view: View, pixel_aspect: Fraction | None) -> None:
        self.view = view
        self.pixel_aspect = float(pixel_aspect or 1)
        self.code: YuvCode | None = None
        self.placement: Placement | None = None
        self._scaler = VideoReformatter()

    def upright_size(self, frame: VideoFrame) -> tuple[float, float]:
        """(height, width) as a viewer sees them, in rows of the frame."""
        height, width = float(frame.height), frame.width * self.pixel_aspect
        return (width, height) if frame.rotation % 180 else (height, width)

    def prepare(self, frame: VideoFrame) -> Placement:
        """Where the picture of a frame goes; the first frame decides for the clip.

        Raises:
          ValueError: a strip that a centre crop would make endless.
        """
        placement = self.placement
        if placement is None or self.view.geometry == "crop":
            placement = self.view.place(*self.upright_size(frame))
        pixels = placement.scaled_height * placement.scaled_width
        if pixels > _MAX_GROWTH * placement.height * placement.width:
            raise ValueError(
                f"has pictures of {frame.width} x {frame.height} pixels, too long for a centre crop"
            )
        if self.placement is None:
            self.placement, self.code = placement, YuvCode.of(frame)
        return placement

    def write(self, frame: VideoFrame, out_3HW: np.ndarray) -> None:
        """Scales a frame into a view, or its first planes only: out is uint8 [1 to 3, H, W]."""
        placement = self.prepare(frame)
        if (
            min(
                placement.scaled_height - placement.height, placement.scaled_width - placement.width
            )
            < 0
        ):
            for plane, black in zip(out_3HW, self.code.black, strict=False):
                plane[:] = black
        y, x = placement.cut
        rows, columns = placement.rows, placement.columns
        for plane, out in zip(self._planes(frame, placement), out_3HW, strict=False):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            out[rows, columns] = plane[y : y + height, x : x + width]

    def _planes(self, frame: VideoFrame, placement: Placement) -> Iterator[np.ndarray]:
        """Y, U and V of the whole frame, scaled and turned: [scaled height, scaled width] each."""
        height, width = placement.scaled_height, placement.scaled_width
        if frame.rotation % 180:
            height, width = width, height
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
        for plane in scaled.planes:
            pixels = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :width]
            # The decoder leaves the turn that a phone recorded to the viewer. FFmpeg counts it
            # anticlockwise, as rot90 does.
            yield np.rot90(pixels, frame.rotation // 90)


def _scaled(height: float, width: float, factor: float) -> tuple[int, int]:
    return max(1, round(height * factor)), max(1, round(width * factor))
