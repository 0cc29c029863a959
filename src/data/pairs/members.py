"""`webdataset:GLOB` and `folder:DIR`: files that belong together by name, as NAME.jpg and NAME.txt.

In a folder and in a tar alike: what agrees up to the first dot of its base name is one pair. The
rest of the name is the column: NAME.txt is `txt`. The fields of NAME.json are columns too.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ...files import is_url, join, list_files, open_read, write_atomic
from ..cache import cache_folder
from ..sources import EXTENSIONS, Item, clean_key
from .columns import Columns
from .source import Entry, PairError, PairSource, unique_keys

_INDEX_VERSION = 1
CLASS_COLUMN = "class_name"
"""Column of a folder source: the first folder below it that a picture lies in."""


class Member(NamedTuple):
    """Where the bytes of a file lie: `size` bytes from `offset` of file number `file`.

    Attributes:
      whole: that file is nothing else.
    """

    file: int
    offset: int
    size: int
    whole: bool = False


class Sample(NamedTuple):
    """The files of one pair by column."""

    stem: str
    members: dict[str, Member]


class MemberPairs(PairSource):
    """Pairs of files that belong together by name.

    Args:
      name: what messages call the source.
      columns: which are what.
      files: the files that members lie in.
      samples: the pairs; their stems are the keys.
    """

    def __init__(
        self, name: str, columns: Columns, files: Sequence[str], samples: Sequence[Sample]
    ) -> None:
        super().__init__(name, columns)
        self._files, self._samples = list(files), list(samples)
        self._keys = unique_keys([clean_key(sample.stem) for sample in samples])

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    @property
    def stamp(self) -> str:
        places = [[stem, sorted(members.items())] for stem, members in self._samples]
        return hashlib.sha256(json.dumps(places).encode()).hexdigest()

    def entry(self, index: int, columns: Sequence[str], media: bool = True) -> Entry:
        key, (stem, members) = self._keys[index], self._samples[index]
        image = None
        if media:
            member = self._choose(members, "image", self.columns.image)
            if member is None:
                raise PairError(key, "dead", f"no picture among {_names(members)}")
            image = self._read(key, member)
        fields = self._fields(key, members, columns)
        folder, slash, _ = stem.partition("/")
        if slash and CLASS_COLUMN in columns and all(member.whole for member in members.values()):
            fields.setdefault(CLASS_COLUMN, folder)
        return Entry(key, fields, image)

    def video(self, index: int) -> Item:
        key, (stem, members) = self._keys[index], self._samples[index]
        member = self._choose(members, "video", self.columns.video)
        if member is None:
            raise PairError(key, "dead", f"no video among {_names(members)}")
        ending = next(name for name, found in members.items() if found is member)
        path, source = self._files[member.file], f"{stem}.{ending}"
        if member.whole:
            return Item(key, "video", path, source, size=member.size)
        inside = (member.offset, member.size)
        return Item(key, "video", path, source, member=inside, size=member.size)

    def _choose(
        self, members: Mapping[str, Member], kind: str, named: Sequence[str]
    ) -> Member | None:
        """The member of a kind: in the order in which the columns name them, or the first."""
        known = [n for n in members if EXTENSIONS.get(PurePosixPath(f"x.{n}").suffix) == kind]
        ordered = [name for name in named if name in known] + known
        return members[ordered[0]] if ordered else None

    def _fields(
        self, key: str, members: Mapping[str, Member], columns: Sequence[str]
    ) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if "json" in members:
            try:
                content = json.loads(self._read(key, members["json"]))
            except ValueError as error:
                raise PairError(key, "bad text", f"its .json is not JSON ({error})") from error
            if isinstance(content, dict):
                fields |= {name: content[name] for name in columns if name in content}
        texts = [name for name in columns if name in members and members[name].size]
        return fields | {name: self._read(key, members[name]) for name in texts}

    def _read(self, key: str, member: Member) -> bytes:
        path = self._files[member.file]
        try:
            with open_read(path) as file:
                file.seek(member.offset)
                data = file.read(member.size)
        except OSError as error:
            raise PairError(key, "dead", f"{path} cannot be read ({error})") from error
        if len(data) < member.size or not data:
            raise PairError(key, "dead", f"{len(data)} of {member.size} bytes in {path}")
        return data


def open_webdataset(pattern: str, columns: Columns) -> MemberPairs:
    """Uncompressed tars, read in place.

    Args:
      pattern: a path or URL; `*` and `?` in a path stand for anything, `{00..99}` for numbers.
      columns: which are what.

    Raises:
      ValueError: there is no such tar, or one is compressed, damaged or cut off.
    """
    paths = matching(pattern)
    if not paths:
        raise ValueError(f"webdataset {pattern}: there is no such file")
    samples = []
    for number, path in enumerate(paths):
        shard = PurePosixPath(path).stem
        for stem, members in _tar_index(path):
            found = {name: Member(number, *place) for name, place in members.items()}
            samples.append(Sample(f"{shard}/{stem}", found))
    return MemberPairs(f"webdataset:{pattern}", columns, paths, samples)


def open_folder(folder: str, columns: Columns) -> MemberPairs:
    """A folder of pictures with texts beside them, at any depth.

    Args:
      folder: folder or URL.
      columns: which are what.

    Raises:
      ValueError: there is nothing in it.
    """
    grouped: dict[str, dict[str, Member]] = {}
    files = {name: size for name, size in list_files(folder).items() if not _hidden(name)}
    for number, (name, size) in enumerate(files.items()):
        stem, column = _split(name)
        grouped.setdefault(stem, {}).setdefault(column, Member(number, 0, size, whole=True))
    media = ("image", "video")
    samples = [
        Sample(stem, members)
        for stem, members in grouped.items()
        if any(EXTENSIONS.get(PurePosixPath(f"x.{name}").suffix) in media for name in members)
    ]
    if not samples:
        raise ValueError(f"folder {folder} holds no picture or video")
    paths = [join(folder, name) for name in files]
    return MemberPairs(f"folder:{folder}", columns, paths, samples)


def matching(pattern: str) -> list[str]:
    """The files that a pattern names: `*` and `?` in a local path, `{00..99}` and `{a,b}`, URLs."""
    return [found for part in _braces(pattern) for found in _glob(part)]


def _tar_index(path: str) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """Stems with offset and size of their members; from the cache if the tar was read before."""
    with open_read(path) as file:
        size = file.seek(0, os.SEEK_END)
    stamp = 0 if is_url(path) else Path(path).stat().st_mtime_ns
    where = path if is_url(path) else str(Path(path).resolve())
    name = hashlib.sha256(json.dumps([_INDEX_VERSION, where, size, stamp]).encode()).hexdigest()
    cached = cache_folder() / "tar-index" / f"{name}.json"
    if cached.is_file():
        return json.loads(cached.read_bytes())
    grouped: dict[str, dict[str, tuple[int, int]]] = {}
    with open_read(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if member.isfile() and not _hidden(member.name):
                        stem, column = _split(member.name.removeprefix("./"))
                        place = (member.offset_data, member.size)
                        grouped.setdefault(stem, {}).setdefault(column, place)
        except tarfile.TarError as error:
            raise ValueError(
                f"{path} is no readable tar ({error}): fetch it again, or unpack a compressed one"
            ) from error
    if any(sum(place) > size for members in grouped.values() for place in members.values()):
        raise ValueError(f"{path} is cut off within a member: fetch it again")
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(cached, json.dumps(list(grouped.items())).encode())
    return list(grouped.items())


def _split(name: str) -> tuple[str, str]:
    """Path up to the first dot of its base name, and the rest in lower case: the column."""
    folder, base = posixpath.split(name)
    stem, _, rest = base.partition(".")
    return posixpath.join(folder, stem), rest.lower()


def _hidden(name: str) -> bool:
    return posixpath.basename(name).startswith(".")


def _names(members: Iterable[str]) -> str:
    return ", ".join(members) or "nothing"


def _glob(pattern: str) -> list[str]:
    if is_url(pattern) or Path(pattern).is_file():
        return [pattern]
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 -- patterns may be absolute


def _braces(pattern: str) -> list[str]:
    """The paths that `{000..123}` and `{a,b}` stand for."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        return [pattern]
    first, last, listed = found.groups()
    if listed is not None:
        parts = listed.split(",")
    else:
        parts = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [path for part in parts for path in _braces(before + part + after)]
