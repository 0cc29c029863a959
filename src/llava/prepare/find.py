"""Where annotation files and videos lie below a folder, whatever an archive unpacked them into."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

VIDEOS = frozenset(
    {".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp"}
    | {".gif"}  # all of TGIF
)
_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_DEEPEST = 6  # folders below each other: links may lead round in circles
_ANNOTATIONS = 3


def find_annotation(root: Path, name: str) -> Path:
    """The file of this name, up to three folders below the root.

    Raises:
      ValueError: there is none, or several.
    """
    for depth in range(_ANNOTATIONS + 1):
        found = sorted(root.glob("*/" * depth + name))
        if len(found) > 1:
            told = ", ".join(str(path.relative_to(root)) for path in found)
            raise ValueError(f"{root}: {name} is several files ({told}): give --root the right one")
        if found:
            return found[0]
    raise ValueError(f"{root} holds no {name}, nor does a folder in it")


def find_videos(root: Path, wanted: Collection[str]) -> dict[str, Path]:
    """Video files, and folders of images, by their name.

    Args:
      root: is searched at any depth; folders of images are not entered.
      wanted: names without ending, or with it.

    Returns:
      The path of each that is there.

    Raises:
      ValueError: one name has several files of different content.
    """
    found: dict[str, Path] = {}
    _search(root, set(wanted), found, 0)
    return found


def _search(folder: Path, wanted: set[str], found: dict[str, Path], depth: int) -> None:
    folders = []
    with os.scandir(folder) as entries:
        for entry in sorted(_until_images(entries), key=lambda entry: entry.name):
            path = Path(entry.path)
            if entry.is_dir():
                if entry.name in wanted and _holds_images(path):
                    _add(entry.name, path, found)
                else:
                    folders.append(path)
            elif path.suffix.lower() in VIDEOS:
                for name in {entry.name, path.stem} & wanted:
                    _add(name, path, found)
    if depth < _DEEPEST:
        for path in folders:
            _search(path, wanted, found, depth + 1)


def _until_images(entries: os.ScandirIterator[str]) -> list[os.DirEntry[str]]:
    """All entries; none of a folder of images, of which data sets have millions."""
    kept = []
    for entry in entries:
        if os.path.splitext(entry.name)[1].lower() in _IMAGES:  # noqa: PTH122
            return [e for e in kept if e.is_dir()]
        kept.append(entry)
    return kept


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(os.path.splitext(entry.name)[1].lower() in _IMAGES for entry in entries)  # noqa: PTH122


def _add(name: str, path: Path, found: dict[str, Path]) -> None:
    if name in found and not found[name].samefile(path):
        raise ValueError(
            f"{name} is both {found[name]} and {path}: remove one, or name the folder with --videos"
        )
    found.setdefault(name, path)
