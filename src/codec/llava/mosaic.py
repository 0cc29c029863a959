"""A selection as mosaics: images whose cells are patches of different places and times.

Cell after cell in reading order, mosaic after mosaic, hold the patches in the order (t, h, w). A
cell of 16 pixels is 2 x 2 blocks of a JPEG, which are coded apart; with chroma at full resolution
(4:4:4) no decoder mixes neighbours. Cells that share blocks are stored as PNG.

Shape suffixes: N cells of all mosaics together, R and C patch rows and columns of the view, L
patches selected, 3 is (t, h, w) or RGB, H and W a mosaic in pixels.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ..clip import Clip
from ..selection import Selection

JPEG_BLOCK = 8
JPEG_QUALITY = 95  # that of the published mosaics
_PNG_LEVEL = 1  # 4 times as fast as zlib's default, 5 % larger


@dataclasses.dataclass(frozen=True, eq=False)
class Mosaics:
    """Patches of a clip in the cells of full mosaics.

    Attributes:
      clip: the clip.
      thw_N3: int32, (index of the sample, patch row, patch column) of every cell.
      positions_N3: int32, the same with the slot 0..63 on the time axis.
      selected: number of different patches; fewer than N where some are repeated.
    """

    clip: Clip
    thw_N3: np.ndarray
    positions_N3: np.ndarray
    selected: int

    @property
    def count(self) -> int:
        """Number of mosaics."""
        rows, columns = mosaic_cells(self.clip)
        return len(self.thw_N3) // _area(rows, columns)

    @property
    def visible_N(self) -> np.ndarray:
        """int64, t * R * C + h * C + w of every cell, t the index of the sample."""
        t, h, w = self.thw_N3.astype(np.int64).T
        return (t * self.clip.rows + h) * self.clip.columns + w

    def rgb(self, number: int) -> np.ndarray:
        """Mosaic `number` as uint8 [H, W, 3]; black outside of the cells."""
        clip, patch = self.clip, self.clip.patch
        rows, columns = mosaic_cells(clip)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        thw = self.thw_N3[number * height * width : (number + 1) * height * width]
        cells = clip.patches(*thw.T).reshape(height, width, patch, patch, 3)
        picture = np.zeros((clip.rows * patch, clip.columns * patch, 3), np.uint8)
        inside = picture[rows.start * patch : rows.stop * patch]
        inside = inside[:, columns.start * patch : columns.stop * patch]
        inside[:] = cells.transpose(0, 2, 1, 3, 4).reshape(inside.shape)
        return picture

    def files(self, png: bool) -> Iterator[bytes]:
        """The mosaics one by one, as PNG or JPEG files."""
        for number in range(self.count):
            yield image_file(self.rgb(number), png)


def image_file(picture_HW3: np.ndarray, png: bool) -> bytes:
    """A picture, uint8, as a PNG or as a JPEG with chroma at full resolution."""
    file = io.BytesIO()
    image = Image.fromarray(picture_HW3)
    if png:
        image.save(file, "PNG", compress_level=_PNG_LEVEL)
    else:
        image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def mosaic_cells(clip: Clip) -> tuple[slice, slice]:
    """(rows, columns) of a mosaic that hold patches.

    With padding "exclude" those where a frame has picture, as published; else all.
    """
    if clip.config.padding == "exclude":
        return clip.placement.patches(clip.patch, whole=True)
    return slice(0, clip.rows), slice(0, clip.columns)


def mosaic_budget(clip: Clip, num_images: int) -> int:
    """Patches that fill the mosaics of a clip: as many as it has samples, at most `num_images`.

    Raises:
      ValueError: no patch lies wholly in the picture, and padding is excluded.
    """
    area = _area(*mosaic_cells(clip))
    if area == 0:
        raise ValueError(
            f"no patch of {clip.patch} pixels lies wholly in the picture: choose padding = keep"
        )
    return min(num_images, len(clip)) * area


def lay_out(selection: Selection, num_images: int = 8) -> Mosaics:
    """Puts a selection into the cells of mosaics.

    Args:
      selection: patches in the order (t, h, w), at most `mosaic_budget` of them. Where they are
        fewer (few patches have picture, or no whole number of blocks fits), all are repeated
        equally often, give or take one, each beside itself, until the mosaics are full.
      num_images: most mosaics.

    Returns:
      The mosaics, all full.
    """
    cells = mosaic_budget(selection.clip, num_images)
    return fill(selection.clip, selection.thw_L3, selection.positions_L3, cells)


def fill(clip: Clip, thw_L3: np.ndarray, positions_L3: np.ndarray, cells: int) -> Mosaics:
    """As `lay_out`, for rows of any origin and a stated number of cells."""
    assert len(thw_L3) <= cells, f"{len(thw_L3)} patches for {cells} cells"
    row_N = np.arange(cells) * len(thw_L3) // cells
    return Mosaics(clip, thw_L3[row_N], positions_L3[row_N], len(thw_L3))


def _area(rows: slice, columns: slice) -> int:
    return (rows.stop - rows.start) * (columns.stop - columns.start)
