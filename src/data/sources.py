"""What `codecvit pack INPUT...` reads: media files, folders, CSV tables and WebDataset tars ->
items.

Each may be a URL. docs/data.md is the user's view of it. Listing opens no video.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import posixpath
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ..codec.image_folder import ImageFolder, is_image_folder
from ..files import (
    PathOrUrl,
    exists,
    is_folder,
    is_url,
    join,
    list_files,
    local_copy,
    open_read,
    read_text,
)
from .labels import check_label_name

_KINDS = {
    "video": ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv",
    "image": ".bmp .jpeg .jpg .png .tif .tiff .webp",
    "tar": ".tar",
    "csv": ".csv",
}
EXTENSIONS = {
    extension: kind for kind, extensions in _KINDS.items() for extension in extensions.split()
}
"""What a file is, by its lower-case extension."""

LABEL_COLUMN = "label"
"""Column of labels that come without a name: class folders and .cls members."""

_CSV_FIELDS = ("path", "start", "end")
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing to pack.

    Attributes:
      key: name of its record, unique among all items.
      kind: `video` or `image`.
      path: the file or its URL, or those of the tar that holds it.
      source: where it lies seen from its input, for people.
      labels: class names by column.
      start: seconds; earlier frames are ignored. None for the beginning.
      end: seconds; frames from it on are ignored. None for the end.
      member: (offset, size) in bytes of the file within its tar, or None.
      size: bytes of the file; 0 if it does not exist (packing will list it as failed), and for a
        URL in a table, since asking for each takes long. Of a folder of numbered images the sum.
      rate: frames a second that a folder of numbered images states.
      texts: captions by name.
    """

    key: str
    kind: str
    path: str
    source: str
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    start: float | None = None
    end: float | None = None
    member: tuple[int, int] | None = None
    size: int = 0
    rate: float | None = None
    texts: dict[str, str] = dataclasses.field(default_factory=dict)


def list_items(inputs: Sequence[PathOrUrl], class_folders: bool = False) -> list[Item]:
    """Everything that the inputs name, with unique keys, sorted by key.

    Args:
      inputs: media files, folders (searched recursively for media and tars), .csv and .tar files.
      class_folders: label what lies in a folder input by the first folder below the input.

    Returns:
      The items; the order and the keys depend on names alone, not on the order of a listing.

    Raises:
      ValueError: an input does not exist, holds nothing that can be packed, or is malformed.
    """
    items = []
    for path in map(os.fspath, inputs):
        found = list(_list_input(path, class_folders))
        if not found:
            known = " ".join(EXTENSIONS)
            raise ValueError(f"input {path} holds no file to pack (known extensions: {known})")
        if len(inputs) > 1:
            name = path.rstrip("/") if is_url(path) else Path(path).resolve().as_posix()
            name = PurePosixPath(name).name if is_folder(path) else PurePosixPath(name).stem
            found = [_renamed(item, f"{name}/{item.key}") for item in found]
        items += found
    items = [_renamed(item, clean_key(item.key)) for item in items]
    items.sort(key=lambda item: (item.key, item.source, item.start or 0, item.end or 0))
    return sorted(_numbered(items), key=lambda item: item.key)


@contextlib.contextmanager
def local_file(item: Item) -> Iterator[Path]:
    """The item as a local file of its own: itself, or a temporary copy that is removed.

    Copies are made in pieces, so that memory does not depend on their size.
    """
    if item.member is None:
        with local_copy(item.path) as path:
            yield path
        return
    offset, size = item.member
    with tempfile.TemporaryDirectory(prefix="codecvit-") as folder:
        path = Path(folder) / PurePosixPath(item.source).name
        with open_read(item.path) as tar, path.open("wb") as copy:
            tar.seek(offset)
            while size and (piece := tar.read(min(size, _CHUNK))):
                size -= copy.write(piece)
        yield path


def _list_input(path: str, class_folders: bool) -> Iterator[Item]:
    if not is_url(path) and is_image_folder(path):
        yield _file_item(path, Path(path).resolve().name)
    elif is_folder(path):
        yield from _list_folder(path, class_folders)
    elif not exists(path):
        raise ValueError(f"input {path} does not exist")
    elif _kind(path) == "csv":
        yield from _list_csv(path)
    elif _kind(path) == "tar":
        yield from _list_tar(path, PurePosixPath(path).stem)
    else:
        # A file that is named directly may have any name: FFmpeg looks at its content.
        yield _file_item(path, posixpath.basename(path))


def _list_folder(folder: str, class_folders: bool) -> Iterator[Item]:
    labelled = False
    for relative, size in _with_image_folders(folder, list_files(folder)).items():
        kind = _kind(relative)
        if size is None:
            kind = "video"
        elif PurePosixPath(relative).name.startswith(".") or kind in (None, "csv"):
            continue
        labels = {}
        if class_folders and "/" in relative:
            labels = {LABEL_COLUMN: relative.split("/")[0]}
            labelled = True
        path = join(folder, relative)
        found = (
            _list_tar(path, posixpath.splitext(relative)[0])
            if kind == "tar"
            else [_file_item(path, relative, size)]
        )
        for item in found:
            yield dataclasses.replace(item, labels={**item.labels, **labels})
    if class_folders and not labelled:
        raise ValueError(f"labels by folder: input {folder} has no class folders with media in it")


def _with_image_folders(folder: str, files: Mapping[str, int]) -> dict[str, int | None]:
    """The files, numbered images replaced by the folder that makes a video of them, size None.

    Only on this machine: each frame of a remote folder would be a request.
    """
    if is_url(folder):
        return dict(files)
    below = {posixpath.dirname(name) for name in files}
    videos = {name for name in below if is_image_folder(join(folder, name))}
    kept = {name: size for name, size in files.items() if posixpath.dirname(name) not in videos}
    return dict(sorted((kept | dict.fromkeys(videos)).items()))


def _list_csv(table: str) -> Iterator[Item]:
    try:
        reader = csv.DictReader(io.StringIO(read_text(table), newline=""), strict=True)
        header = reader.fieldnames or []
        rows = [(reader.line_num, row) for row in reader]
        for column in set(header) - set(_CSV_FIELDS):
            check_label_name(column)
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{table}: {error}") from error
    if "path" not in header:
        raise ValueError(
            f"{table}: the first line must name the columns, among them `path`; "
            f"it is {','.join(header)!r}"
        )
    for line, row in rows:
        where = f"{table}, line {line}"
        if None in row or None in row.values() or not row["path"]:
            raise ValueError(f"{where}: expected {len(header)} fields and a path")
        item = _file_item(join(posixpath.dirname(table), row["path"]), row["path"])
        start = _seconds(row.get("start", ""), f"{where}, start")
        end = _seconds(row.get("end", ""), f"{where}, end")
        if item.kind == "image" and (start is not None or end is not None):
            raise ValueError(f"{where}: an image has no start or end")
        labels = {k: v for k, v in row.items() if k not in _CSV_FIELDS and v}
        cut = ""
        if start is not None or end is not None:
            cut = f"@{row.get('start', '')}-{row.get('end', '')}"
        yield dataclasses.replace(item, key=item.key + cut, labels=labels, start=start, end=end)


def _list_tar(tar: str, key: str) -> Iterator[Item]:
    """Members of a WebDataset shard; NAME.cls (text) or NAME.json (`label`) labels NAME.mp4."""
    media: list[tuple[str, tarfile.TarInfo]] = []
    labels: dict[str, str] = {}
    with open_read(tar) as file:
        try:
            # Members are read in place later, so the tar must not be compressed.
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if not member.isfile():
                        continue
                    # As in WebDataset, a sample is what agrees up to the first dot of the base
                    # name.
                    path = PurePosixPath(member.name)
                    stem = (path.parent / path.name.split(".")[0]).as_posix()
                    extension = path.suffix.lower()
                    if EXTENSIONS.get(extension) in ("video", "image"):
                        media.append((stem, member))
                    elif extension in (".cls", ".json"):
                        content = archive.extractfile(member).read().decode("utf-8")
                        if (label := _tar_label(extension, content)) is not None:
                            labels[stem] = label
        except (tarfile.TarError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{tar} is no readable WebDataset tar: {error}") from error
    for stem, member in media:
        yield Item(
            key=f"{key}/{member.name}",
            kind=EXTENSIONS[PurePosixPath(member.name).suffix.lower()],
            path=tar,
            source=f"{posixpath.basename(tar)}/{member.name}",
            labels={LABEL_COLUMN: labels[stem]} if stem in labels else {},
            member=(member.offset_data, member.size),
            size=member.size,
        )


def _tar_label(extension: str, content: str) -> str | None:
    if extension == ".cls":
        return content.strip()
    fields = json.loads(content)
    value = fields.get(LABEL_COLUMN) if isinstance(fields, dict) else None
    return None if value is None else str(value)


def _file_item(path: str, source: str, size: int | None = None) -> Item:
    if not is_url(path) and is_image_folder(path):
        frames = ImageFolder(path)
        size = sum(image.stat().st_size for image in frames.paths)
        return Item(source, "video", path, source, size=size, rate=frames.rate)
    if size is None:
        size = Path(path).stat().st_size if not is_url(path) and Path(path).is_file() else 0
    kind = "image" if _kind(path) == "image" else "video"
    return Item(key=source, kind=kind, path=path, source=source, size=size)


def _kind(path: str) -> str | None:
    return EXTENSIONS.get(posixpath.splitext(path)[1].lower())


def _seconds(text: str, where: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise ValueError(f"{where}: {text!r} is no number of seconds") from None


def clean_key(key: str) -> str:
    """Keys hold letters, digits and a few signs, so that they survive in any file name or table."""
    return re.sub(r"[^A-Za-z0-9._@/-]+", "_", key).strip("/")


def _renamed(item: Item, key: str) -> Item:
    return dataclasses.replace(item, key=key)


def _numbered(items: Sequence[Item]) -> Iterator[Item]:
    """Gives the second and later items of one key the ending ~2, ~3, ..."""
    seen: dict[str, int] = {}
    for item in items:
        count = seen[item.key] = seen.get(item.key, 0) + 1
        yield item if count == 1 else _renamed(item, f"{item.key}~{count}")
