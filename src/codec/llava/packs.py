"""One video -> one folder of mosaics with what belongs to them, made once and recognised again.

`meta.json` is written last: a folder without it is unfinished. It says what the folder was made of
and with, so that a later run knows whether to make it again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
import re
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from ...files import (
    exists,
    join,
    list_files,
    local_copy,
    make_folder,
    read_bytes,
    remove,
    write_atomic,
)
from ..errors import MediaError
from .choice import choose_patches
from .mosaic import Mosaics, lay_out, mosaic_cells
from .options import MosaicOptions
from .span import Span
from .stage_writer import write_selection
from .stages import (
    RowName,
    npy,
    pack_selection,
    read_selection,
    stage1_names,
)

META = "meta.json"
POSITIONS = "positions_thw.npy"
VERSION = "codecvit-llava-1"
EXPECTED = (ValueError, OSError, MemoryError, av.FFmpegError)
"""What a file may do to us; anything else is a bug and stops the run."""

_IMAGES = (".jpg", ".png")


class PackError(ValueError):
    """A folder of mosaics that is not what it should be."""


@dataclasses.dataclass(frozen=True)
class PackTask:
    """One video to be packed.

    Attributes:
      video: path or URL.
      name: how `meta.json` calls it, the same on every machine.
      folder: of the pack; path or URL.
      stem: beginning of the images' names.
      identity: further entries of `meta.json`.
      evaluation: also write visible_indices.npy and frame_ids.npy.
      selection: prefix of stage-1 files to take the patches from, or None to choose them.
      selection_out: folder to write stage-1 files to, or None.
      rows: whose stage-1 files are written.
      span: the part of the video that is shown.
    """

    video: str
    name: str
    folder: str
    stem: str
    identity: tuple[tuple[str, str], ...] = ()
    evaluation: bool = False
    selection: str | None = None
    selection_out: str | None = None
    rows: tuple[RowName, ...] = ()
    span: Span = dataclasses.field(default_factory=Span)


class Pack(NamedTuple):
    """A complete pack.

    Attributes:
      images: names of the mosaics, in order.
      skipped: it was there already.
    """

    images: list[str]
    skipped: bool = False


def make_pack(options: MosaicOptions, task: PackTask) -> Pack:
    """Makes a pack, unless it is there and made of the same video with the same options.

    Raises:
      ValueError, OSError: the video or its stage-1 files are unusable.
    """
    stage1 = None if task.selection is None else read_selection(task.selection, options)
    with local_copy(task.video) as path:
        source = source_of(path)
        made_of = {
            "config_hash": options.hash,
            "source": source,
            "stage1_hash": None if stage1 is None else stage1.hash,
        }
        if not task.span.whole:
            made_of["span"] = task.span.row()
        there = _meta_if_whole(task.folder)
        if (
            there is not None
            and all(there.get(name) == value for name, value in made_of.items())
            and there.get("span", {}) == task.span.row()
            and not _lacks_selection(task, options, there)
        ):
            return Pack(there["images"], skipped=True)
        if stage1 is not None:
            mosaics = pack_selection(path, stage1, options)
        else:
            mosaics = _select(path, options, task)
    return _write(task, options, mosaics, made_of)


def source_of(path: Path) -> dict[str, Any]:
    """`bytes` and `sha256` of a video file, or of the files of an image folder with their names."""
    if not path.is_dir():
        if not path.exists():
            raise MediaError(path, "does not exist")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    total, digest = 0, hashlib.sha256()
    for name, size in list_files(path).items():
        content = hashlib.sha256((path / name).read_bytes()).hexdigest()
        digest.update(f"{name}\n{content}\n".encode("utf-8", "surrogatepass"))
        total += size
    return {"bytes": total, "sha256": digest.hexdigest()}


def read_pack(folder: str) -> tuple[list[str], dict[str, Any] | None]:
    """Names of the mosaics of a pack, ours or published, and the content of its meta.json.

    Args:
      folder: of the pack; path or URL.

    Returns:
      (names in order, meta); without meta for the packs of the published tool.

    Raises:
      PackError: a file is missing or has another size than it should.
    """
    sizes = list_files(folder)
    if POSITIONS not in sizes:
        raise PackError(f"{folder} lacks {POSITIONS}")
    meta = json.loads(read_bytes(join(folder, META))) if META in sizes else None
    if meta is None or "files" not in meta:
        images = [name for name in sizes if posixpath.splitext(name)[1].lower() in _IMAGES]
        if not images:
            raise PackError(f"{folder} holds no mosaics")
        return sorted(images, key=_natural), None
    for name, size in meta["files"].items():
        if sizes.get(name) != size:
            state = f"has {sizes[name]} bytes instead of {size}" if name in sizes else "is missing"
            raise PackError(f"{join(folder, name)} {state}")
    return meta["images"], meta


def _natural(name: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _meta_if_whole(folder: str) -> dict[str, Any] | None:
    if not exists(join(folder, META)):
        return None
    try:
        return read_pack(folder)[1]
    except ValueError:  # not whole, or a meta.json that is not JSON
        return None


def _lacks_selection(task: PackTask, options: MosaicOptions, meta: dict[str, Any]) -> bool:
    if task.selection_out is None:
        return False
    names = (name for row in task.rows for name in stage1_names(row, options, meta["selected"]))
    return not all(exists(join(task.selection_out, name)) for name in names)


def _select(path: Path, options: MosaicOptions, task: PackTask) -> Mosaics:
    selection = choose_patches(path, options, task.span)
    if task.selection_out is not None:
        make_folder(task.selection_out)
        for row in task.rows:
            write_selection(task.selection_out, row, selection, options, path)
    return lay_out(selection, options.num_images)


def _write(
    task: PackTask, options: MosaicOptions, mosaics: Mosaics, made_of: dict[str, Any]
) -> Pack:
    """Writes a pack over whatever the folder holds."""
    folder, clip = task.folder, mosaics.clip
    make_folder(folder)
    remove(join(folder, META))  # from here on the folder is unfinished
    stale = set(list_files(folder))
    files: dict[str, int] = {}

    def put(name: str, content: bytes) -> None:
        write_atomic(join(folder, name), content)
        files[name] = len(content)

    ending = "png" if options.png else "jpg"
    images = [f"{task.stem}_{number:03d}.{ending}" for number in range(mosaics.count)]
    for name, content in zip(images, mosaics.files(options.png), strict=True):
        put(name, content)
    put(POSITIONS, npy(mosaics.positions_N3))
    if task.evaluation:
        put("visible_indices.npy", npy(mosaics.visible_N))
        put("frame_ids.npy", npy(clip.frame_ids_M.astype(np.int32)))
    for name in sorted(stale - files.keys()):
        remove(join(folder, name))
    cell_rows, cell_columns = mosaic_cells(clip)
    meta = {
        "version": VERSION,
        **dict(task.identity),
        "video": task.name,
        "config": options.describe(),
        **made_of,
        "selected": mosaics.selected,
        "cells": len(mosaics.thw_N3),
        "rows": clip.rows,
        "columns": clip.columns,
        "cell_rows": [cell_rows.start, cell_rows.stop],
        "cell_columns": [cell_columns.start, cell_columns.stop],
        "frame_ids": clip.frame_ids_M.tolist(),
        "seconds": [round(seconds, 6) for seconds in clip.seconds_M.tolist()],
        "images": images,
        "files": files,
    }
    write_atomic(join(folder, META), (json.dumps(meta, indent=1) + "\n").encode())
    return Pack(images)
