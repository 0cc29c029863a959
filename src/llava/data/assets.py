"""Packs of mosaics as visuals: cells at their true size, options checked, times from the pack.

Shape suffixes: L patches, P side of a patch, 3 RGB or (t, h, w), M sampled frames, N cells of all
mosaics, H and W a mosaic in pixels.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...codec.image import open_image
from ...codec.llava.packs import META, POSITIONS, PackError, read_pack
from ...codec.llava.rows import folder_of
from ...files import join, open_read, read_bytes
from ...sequence import NUM_SLOTS, slot_times
from .patch_resize import resize_patches
from .visuals import Visual, group_seconds, mosaic_groups, mosaic_patches

PUBLISHED = "none (a published pack)"


class AssetMismatch(ValueError):
    """Assets that were made with other options than the rest, or than expected."""


@dataclasses.dataclass(frozen=True)
class Pack:
    """A folder of mosaics.

    Attributes:
      folder: path or URL.
      images: names of the mosaics, in order.
      meta: content of its meta.json; None for packs of the published tool.
    """

    folder: str
    images: tuple[str, ...]
    meta: dict[str, Any] | None

    @property
    def config_hash(self) -> str:
        """Of the options that it was made with; PUBLISHED where it does not say."""
        return PUBLISHED if self.meta is None else str(self.meta["config_hash"])

    def require_hash(self, expected: str) -> None:
        """Raises AssetMismatch, which names both, unless the pack was made with these options."""
        if self.config_hash != expected:
            raise AssetMismatch(
                f"{self.folder} was made with options of the hash {self.config_hash}, expected was "
                f"{expected}: make all assets with the same options (`codecvit llava check` lists "
                "those that differ)"
            )


def open_pack(folder: str) -> Pack:
    """Finds what a pack consists of; nothing is decoded.

    Raises:
      PackError: a file is missing, or has another size than it should.
      OSError: the folder cannot be read.
    """
    images, meta = read_pack(folder)
    if (
        meta is not None
        and not {"config_hash", "config", "rows", "columns", "seconds"} <= meta.keys()
    ):
        raise PackError(f"{folder}: {META} lacks entries: make the pack again")
    return Pack(folder, tuple(images), meta)


def row_pack(positions: str, images: Sequence[str]) -> Pack:
    """The pack that a row of training data names.

    Args:
      positions: path of its positions_thw.npy.
      images: paths of its mosaics.

    Raises:
      PackError: as `open_pack`; or the images are not those of the pack, in their order.
    """
    pack = open_pack(folder_of(positions))
    if list(images) != [join(pack.folder, name) for name in pack.images]:
        raise PackError(
            f"{len(images)} images of the row are not the {len(pack.images)} mosaics of "
            f"{pack.folder}, in their order"
        )
    return pack


def mosaic_visual(pack: Pack | str, patch: int | None = None) -> Visual:
    """Reads a pack.

    Args:
      pack: the pack, or its folder.
      patch: side of the encoder's patch; None: that of the cells. Cells of another size are resized
        each on its own.

    Returns:
      One group per mosaic; with times unless the pack is a published one.

    Raises:
      PackError: positions are no positions, or do not match the images.
      MediaError: a mosaic is damaged.
      OSError: a file cannot be read.
    """
    pack = open_pack(pack) if isinstance(pack, str) else pack
    positions = _positions(pack)
    rows, columns, side, cell_rows, cell_columns = _layout(pack, len(positions))
    size = (columns * side, rows * side)
    cells = []
    for name in pack.images:
        path = join(pack.folder, name)
        with open_read(path) as file:
            image = open_image(file, path)
        if image.size != size:
            raise PackError(f"{path} has {image.size} pixels (width, height) instead of {size}")
        cells.append(mosaic_patches(np.asarray(image), side, cell_rows, cell_columns))
    patches = np.concatenate(cells)
    if len(patches) != len(positions):
        raise PackError(
            f"{pack.folder}: {len(positions)} positions for {len(pack.images)} mosaics of "
            f"{len(cells[0])} cells"
        )
    if (positions < 0).any() or (positions >= (NUM_SLOTS, rows, columns)).any():
        raise PackError(f"{pack.folder}: positions lie outside of {NUM_SLOTS} x {rows} x {columns}")
    return Visual(
        resize_patches(patches, patch or side),
        positions,
        mosaic_groups(len(positions), len(pack.images)),
        _seconds(pack, positions[:, 0]),
        (rows, columns),
    )


def _positions(pack: Pack) -> np.ndarray:
    path = join(pack.folder, POSITIONS)
    try:
        array = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise PackError(f"{path} is no array ({error})") from error
    if array.dtype != np.int32 or array.ndim != 2 or array.shape[1] != 3 or len(array) == 0:
        raise PackError(f"{path} is {array.dtype} {list(array.shape)} instead of int32 [N, 3]")
    return array


def _layout(pack: Pack, cells: int) -> tuple[int, int, int, slice, slice]:
    """(rows, columns of the view, side of a cell in pixels, rows and columns that hold cells)."""
    meta, count = pack.meta, len(pack.images)
    if meta is not None:
        rows, columns, side = meta["rows"], meta["columns"], meta["config"]["patch"]
        if cells == rows * columns * count:
            return rows, columns, side, slice(0, rows), slice(0, columns)
        if "cell_rows" not in meta:
            raise PackError(
                f"{pack.folder}: {META} does not say where its cells are: make it again"
            )
        return rows, columns, side, slice(*meta["cell_rows"]), slice(*meta["cell_columns"])
    grid = math.isqrt(cells // count)
    path = join(pack.folder, pack.images[0])
    with open_read(path) as file:
        width = open_image(file, path).width
    if grid**2 * count != cells or width % grid:
        raise PackError(
            f"{pack.folder}: {cells} positions do not fill {count} square mosaics of {width} "
            "pixels: of published packs only those with full mosaics can be read"
        )
    return grid, grid, width // grid, slice(0, grid), slice(0, grid)


def _seconds(pack: Pack, slot_N: np.ndarray) -> np.ndarray | None:
    if pack.meta is None:
        return None
    seconds_M = np.asarray(pack.meta["seconds"], np.float64)
    slots_M = slot_times(len(seconds_M))
    sample_N = np.searchsorted(slots_M, slot_N)
    if sample_N.max() >= len(slots_M) or (slots_M[sample_N] != slot_N).any():
        raise PackError(
            f"{pack.folder}: positions name times that are none of its {len(seconds_M)} samples"
        )
    return group_seconds(sample_N, seconds_M, len(pack.images))
