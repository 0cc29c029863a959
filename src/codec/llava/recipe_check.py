"""Does a data tree hold all that a recipe of training data names?

Files are looked for, not read: `check_rows` looks into those of one data set.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...files import exists, join
from ...jobs import Failure, run_jobs
from .packs import EXPECTED, read_pack
from .recipe import Entry, read_recipe
from .rows import RowError, folder_of, images_of, iter_rows, video_of

_PUBLISHED = "none (published packs)"


@dataclasses.dataclass
class Group:
    """Problems of one kind.

    Attributes:
      kind: JSON, PACK, IMAGE or VIDEO (not there, or not whole), CONFIG (packs of different
        options), ROW (rows that are malformed).
      total: how many different things of this kind were looked for.
      found: a line per problem.
    """

    kind: str
    total: int
    found: list[str]


class _Uses(NamedTuple):
    """Where a file is named: the first row, and by how many."""

    source: str
    rows: int


@dataclasses.dataclass
class _Named:
    """All that the rows of a recipe name."""

    files: dict[str, dict[str, _Uses]]
    pack_images: dict[str, list[str]]
    rows: int = 0
    broken: list[str] = dataclasses.field(default_factory=list)

    def add(self, kind: str, path: str, source: str) -> None:
        known = self.files[kind].get(path)
        self.files[kind][path] = (
            _Uses(source, 1) if known is None else _Uses(known[0], known[1] + 1)
        )


def check_recipe(path: str, root: str, workers: int | None = 0) -> list[Group]:
    """Lists what a data tree lacks.

    Args:
      path: the recipe.
      root: folder or URL of the data.
      workers: processes.

    Returns:
      A group for each kind of problem that there is. Rows that a strategy leaves out do not count;
      with "random" all do, since the draw depends on the training's seed.

    Raises:
      ValueError, OSError: the recipe is unusable.
    """
    entries = read_recipe(path)
    named = _Named({"PACK": {}, "IMAGE": {}, "VIDEO": {}}, {})
    missing = []
    for number, entry in enumerate(entries):
        reason = _read_entry(entry, root, named)
        if reason is not None:
            missing.append(f"{_shown(entry.file(root), root)}: {reason} (entry {number})")
    groups = [Group("JSON", len(entries), missing)]
    packs, hashes = _packs(named, root, workers)
    groups.append(packs)
    for kind in ("IMAGE", "VIDEO"):
        files = named.files[kind]
        there = run_jobs(exists, sorted(files), workers=workers, expected=EXPECTED)
        found = [
            f"{_shown(path, root)}: {_why(answer)} ({_told(files[path])})"
            for path, answer in there
            if answer is not True
        ]
        groups.append(Group(kind, len(files), found))
    if len(hashes) > 1:
        found = [
            f"{count} packs were made with the options {name}" for name, count in hashes.items()
        ]
        groups.append(Group("CONFIG", hashes.total(), sorted(found)))
    groups.append(Group("ROW", named.rows, named.broken))
    return [group for group in groups if group.found]


def _read_entry(entry: Entry, root: str, named: _Named) -> str | None:
    """Adds what an entry's rows name; the reason if there are no such rows."""
    path = entry.file(root)
    try:
        if not exists(path):
            return "does not exist"
        count = sum(1 for _ in iter_rows(path))
        if count == 0:
            return "holds no rows"
        drawn = entry.strategy.kind == "random"
        taken = set(entry.strategy.take(count, 0, entry.json_path).tolist())
        for number, row in iter_rows(path):
            if drawn or number in taken:
                _read_row(row, f"{entry.json_path} row {number}", entry, root, named)
    except (ValueError, OSError) as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _read_row(
    row: Mapping[str, Any] | RowError, source: str, entry: Entry, root: str, named: _Named
) -> None:
    named.rows += 1
    folders = entry.folders(root)
    try:
        if isinstance(row, RowError):
            raise row
        video, images = video_of(row), images_of(row)
        positions = row.get("positions_thw")
        if positions is None:
            for image in images:
                named.add("IMAGE", join(folders.images, image), source)
        elif isinstance(positions, str):
            folder = folder_of(join(folders.mosaics, positions))
            named.add("PACK", folder, source)
            here = [join(folders.mosaics, image) for image in images]
            if named.pack_images.setdefault(folder, here) != here:
                named.broken.append(f"{source}: its images are not those of other rows of {folder}")
        else:
            raise RowError(f"positions_thw = {json.dumps(positions)} must be a path")
        if video is not None:
            named.add("VIDEO", join(folders.videos, video), source)
    except RowError as error:
        named.broken.append(f"{source}: {error}")


def _packs(named: _Named, root: str, workers: int | None) -> tuple[Group, collections.Counter[str]]:
    """(problems of packs, how many were made with which options)."""
    folders, found = named.files["PACK"], []
    hashes: collections.Counter[str] = collections.Counter()
    states = run_jobs(_pack_state, sorted(folders), workers=workers, expected=EXPECTED)
    for folder, state in states:
        if isinstance(state, Failure):
            reason = state.reason.replace(f"{folder}/", "").replace(f"{folder} ", "")
        else:
            images, made_with = state
            hashes[made_with] += 1
            if [join(folder, name) for name in images] == named.pack_images[folder]:
                continue
            reason = "its mosaics are not the images of its rows"
        found.append(f"{_shown(folder, root)}: {reason} ({_told(folders[folder])})")
    return Group("PACK", len(folders), found), hashes


def _pack_state(folder: str) -> tuple[list[str], str]:
    images, meta = read_pack(folder)
    return images, _PUBLISHED if meta is None else str(meta.get("config_hash"))


def _why(answer: bool | Failure) -> str:
    return f"{answer.kind}: {answer.reason}" if isinstance(answer, Failure) else "does not exist"


def _told(uses: _Uses) -> str:
    return uses.source if uses.rows == 1 else f"{uses.rows} rows, first {uses.source}"


def _shown(path: str, root: str) -> str:
    below = root.rstrip("/") + "/"
    return path.removeprefix(below) if path.startswith(below) else path
