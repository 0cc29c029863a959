"""Looks assets up by the path of a video: the same keys as whoever made them, never a guess."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...codec.llava.keys import key_of, relative_path
from ...codec.llava.packs import META, POSITIONS, PackError
from ...codec.llava.rows import RowError, iter_rows
from ..data.assets import PUBLISHED, open_pack

RECORD = "benchmark.json"
LIST = "*_videos.jsonl"


@dataclasses.dataclass(frozen=True)
class Asset:
    """A folder of mosaics that belongs to a video.

    Attributes:
      folder: where it is.
      config_hash: of the options that it was made with.
      config: those options, as its meta.json tells them.
    """

    folder: str
    config_hash: str
    config: dict[str, Any]


class AssetRoots:
    """Folders that `codecvit llava assets` or `codecvit llava benchmark` made.

    Args:
      folders: each holds `assets/<key>/` or `<key>/`, or several `<task>_offline` that do.
      video_roots: folders that keys are made relative to, besides those that the folders know.

    Raises:
      ValueError: a folder does not exist or holds no assets.
    """

    def __init__(self, folders: Sequence[str], video_roots: Sequence[str] = ()) -> None:
        self._given = tuple(video_roots)
        self._places = [place for folder in folders for place in _places(Path(folder))]

    @property
    def folders(self) -> list[str]:
        """The folders that are looked through, in this order."""
        return [str(place.base) for place in self._places]

    def find(self, video: str, task_root: Path | None = None) -> Asset | None:
        """The asset of a video; None if there is none.

        Args:
          video: absolute path.
          task_root: folder that the videos of its task lie in, where the table of tasks knows it.

        Raises:
          PackError: the asset is not whole, or was made of another file.
        """
        for place in self._places:
            for key in self._keys(place, video, task_root):
                folder = place.base / key
                if (folder / POSITIONS).exists() or (folder / META).exists():
                    return _open(folder, video)
        return None

    def failure(self, video: str, task_root: Path | None = None) -> str | None:
        """Why packing gave a video up, where a list of failures tells."""
        for place in self._places:
            for key in self._keys(place, video, task_root):
                if key in place.failures:
                    return place.failures[key]
        return None

    def _keys(self, place: _Place, video: str, task_root: Path | None) -> list[str]:
        roots = [*self._given, *place.roots, *([] if task_root is None else [str(task_root)])]
        keys = [place.listed[video]] if video in place.listed else []
        for root in roots:
            name = relative_path(video, root)
            if not name.startswith(".."):
                keys.append(place.listed.get(name) or key_of({"video": name}, root))
        return list(dict.fromkeys(keys))


@dataclasses.dataclass(frozen=True)
class _Place:
    """One folder of assets.

    Attributes:
      base: holds `<key>/`.
      roots: folders that its keys are relative to.
      listed: path of a video, as its list states it -> key.
      failures: key -> reason.
    """

    base: Path
    roots: tuple[str, ...]
    listed: dict[str, str]
    failures: dict[str, str]


def _places(folder: Path) -> list[_Place]:
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist: make it with `codecvit llava benchmark`")
    nested = sorted(f for f in folder.glob("*_offline") if (f / "assets").is_dir())
    if nested and not (folder / "assets").is_dir():
        return [_place(child) for child in nested]
    return [_place(folder)]


def _place(folder: Path) -> _Place:
    base = folder / "assets" if (folder / "assets").is_dir() else folder
    about = base.parent if base != folder or folder.name == "assets" else folder
    roots: tuple[str, ...] = ()
    if (about / RECORD).exists():
        roots = (str(json.loads((about / RECORD).read_text(encoding="utf-8"))["root"]),)
    listed = {}
    for path in sorted(about.glob(LIST)):
        for _, row in iter_rows(str(path)):
            if not isinstance(row, RowError) and row.get("key") and row.get("video"):
                listed[str(row["video"])] = key_of(row, "")
    failures: dict[str, str] = {}
    if (about / "failures.jsonl").exists():
        for _, row in iter_rows(str(about / "failures.jsonl")):
            if not isinstance(row, RowError) and row.get("key"):
                failures[str(row["key"])] = str(row.get("reason"))
    return _Place(base, roots, listed, failures)


def _open(folder: Path, video: str) -> Asset:
    pack = open_pack(str(folder))
    if pack.meta is None:  # published
        path = folder / META
        meta = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return Asset(str(folder), PUBLISHED, meta.get("cfg", {}))
    size = pack.meta["source"]["bytes"]
    if os.path.isfile(video) and os.path.getsize(video) != size:  # noqa: PTH113, PTH202
        raise PackError(
            f"{folder} was made of a file of {size} bytes, but {video} has "
            f"{Path(video).stat().st_size}: make it again"
        )
    return Asset(str(folder), pack.config_hash, pack.meta["config"])
