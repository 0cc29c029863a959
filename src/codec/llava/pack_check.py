"""Is one folder of mosaics whole, and are its positions possible?"""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...files import join, open_read, read_bytes
from ...sequence import NUM_SLOTS
from .keys import config_hash
from .packs import META, POSITIONS, PackError, read_pack


@dataclasses.dataclass(frozen=True)
class PackReport:
    """What was found in a folder of mosaics.

    Attributes:
      images: names of the mosaics.
      problems: (kind, reason) each.
      key: as its meta.json states it.
      config_hash: of what it was made with; None for packs of the published tool.
    """

    images: tuple[str, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()
    key: str | None = None
    config_hash: str | None = None


def check_pack(folder: str) -> PackReport:
    """Checks one folder of mosaics: files, images, positions, config hash."""
    try:
        images, meta = read_pack(folder)
    except (ValueError, OSError) as error:
        return PackReport(problems=(("FILE", str(error)),))
    problems = []
    try:
        sizes = {_image_size(join(folder, name), whole=meta is None) for name in images}
        positions = _array(join(folder, POSITIONS))
        if meta is None:
            problems += _check_published(positions, len(images), min(map(min, sizes)))
            if len(sizes) > 1:
                problems.append(("FILE", f"mosaics have different sizes: {sorted(sizes)}"))
            return PackReport(tuple(images), tuple(problems))
        rows, columns, config = meta["rows"], meta["columns"], meta["config"]
        patch = config["patch"]
        if sizes != {(columns * patch, rows * patch)}:
            problems.append(
                ("FILE", f"mosaics of {sorted(sizes)} pixels instead of {columns}x{rows} patches")
            )
        if config_hash(config) != meta["config_hash"]:
            problems.append(("CONFIG", f"the options in {META} are not those of its hash"))
        problems += _check_positions(positions, len(images), rows, columns)
        if not problems and len(positions) != meta["cells"]:
            problems.append(("POSITIONS", f"{len(positions)} positions for {meta['cells']} cells"))
        if not problems and "visible_indices.npy" in meta["files"]:
            problems += _check_indices(folder, positions, rows, columns)
        return PackReport(
            tuple(images), tuple(problems), str(meta.get("key")), str(meta["config_hash"])
        )
    except (PackError, OSError) as error:
        problems.append(("FILE", str(error)))
    except (KeyError, TypeError) as error:
        problems.append(("FILE", f"{META} lacks an entry: {error}"))
    return PackReport(tuple(images), tuple(problems))


def _check_positions(
    positions: np.ndarray, images: int, rows: int, columns: int
) -> list[tuple[str, str]]:
    if positions.dtype != np.int32 or positions.ndim != 2 or positions.shape[1] != 3:
        found = f"{positions.dtype} {list(positions.shape)}"
        return [("POSITIONS", f"{POSITIONS} is {found} instead of int32 [N, 3]")]
    if len(positions) == 0 or len(positions) % images:
        return [("POSITIONS", f"{len(positions)} positions do not fill {images} mosaics")]
    outside = ((positions < 0) | (positions >= (NUM_SLOTS, rows, columns))).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        limits = f"{NUM_SLOTS} x {rows} x {columns}"
        told = f"position {row} is {positions[row].tolist()}, outside of {limits}"
        return [("POSITIONS", told)]
    return []


def _check_published(positions: np.ndarray, images: int, pixels: int) -> list[tuple[str, str]]:
    """Of packs that do not state their grid: full mosaics are as many rows as columns."""
    side = math.isqrt(len(positions) // images)
    full = side * side * images == len(positions)
    return _check_positions(positions, images, *([side, side] if full else [pixels, pixels]))


def _check_indices(
    folder: str, positions: np.ndarray, rows: int, columns: int
) -> list[tuple[str, str]]:
    visible, ids = (_array(join(folder, f"{n}.npy")) for n in ("visible_indices", "frame_ids"))
    if visible.dtype != np.int64 or visible.shape != (len(positions),):
        found = f"{visible.dtype} {list(visible.shape)}"
        return [("POSITIONS", f"visible_indices.npy is {found} instead of int64 [N]")]
    frame, place = np.divmod(visible, rows * columns)
    same = np.array_equal(place, positions[:, 1] * columns + positions[:, 2])
    if not same or visible.min() < 0 or frame.max() >= len(ids):
        return [("POSITIONS", "visible_indices.npy names other patches than positions_thw.npy")]
    return []


def _image_size(path: str, whole: bool) -> tuple[int, int]:
    """(width, height); of an image whose bytes were not counted by decoding all of it."""
    try:
        with open_read(path) as file, Image.open(file) as image:
            if whole:
                image.load()
            return image.size
    except (UnidentifiedImageError, OSError) as error:
        raise PackError(f"{path} is no whole image ({error})") from error


def _array(path: str) -> np.ndarray:
    try:
        return np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise PackError(f"{path} is no array ({error})") from error
