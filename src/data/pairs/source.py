"""What every source of pairs has in common: texts, and what makes a pair unusable."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...codec.errors import MediaError
from ...codec.image import open_image
from ...files import sha256_of
from ..record import Record, RecordError
from .columns import Columns

if TYPE_CHECKING:
    from ..sources import Item
    from .captions import Captions

KINDS = ("dead", "undecodable", "no text", "bad text")
"""Why a pair is unusable: no picture, a damaged one, no caption, a caption that is no text."""

MAX_CHARACTERS = 50_000
"""Longest caption: what is longer is a page or a mistake, and takes long to tokenise."""

MIN_SIDE = 4
"""Pixels: what is smaller or thinner is a placeholder that a server sends instead of a picture."""

_HASHED, _ENDS = 1 << 30, 1 << 20  # bytes


class PairError(RecordError):
    """A pair that cannot be used.

    Attributes:
      key: of the pair.
      kind: one of KINDS.
      reason: what is wrong, for people.
    """

    def __init__(self, key: str, kind: str, reason: str) -> None:
        self.key, self.kind, self.reason = key, kind, reason
        super().__init__(f"{key}: {kind}: {reason}")

    def __reduce__(self) -> tuple[type[PairError], tuple[str, str, str]]:
        return type(self), (self.key, self.kind, self.reason)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """One pair: texts with an encoded picture, a record or a video.

    Attributes:
      key: unique in its source.
      texts: by name; empty ones are left out, and at least one is there.
      image: an encoded picture, or...
      record: ...a record.
    """

    key: str
    texts: dict[str, str]
    image: bytes | None = None
    record: Record | None = None

    def picture(self) -> Image.Image:
        """The picture decoded, upright, in RGB; of an animation the first frame.

        Raises:
          PairError: it cannot be decoded, or is too small to show anything.
        """
        return decode_picture(self.key, self.image or b"")


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """What a source stores of a pair, before its texts are looked at.

    Attributes:
      key: of the pair.
      fields: values by column, of those that were asked for.
      image, record: as in `Pair`.
    """

    key: str
    fields: Mapping[str, Any]
    image: bytes | None = None
    record: Record | None = None


class PairSource(abc.ABC):
    """Pairs that can be read at any place; travels to worker processes.

    Attributes:
      name: what messages call it.
      columns: which of its columns are what.
      captions: further columns by join value, see `captions.py`; None: none.
    """

    def __init__(self, name: str, columns: Columns) -> None:
        self.name, self.columns = name, columns
        self.captions: Captions | None = None

    @property
    @abc.abstractmethod
    def keys(self) -> Sequence[str]:
        """Keys of all pairs, in their order; none is there twice."""

    @property
    @abc.abstractmethod
    def stamp(self) -> str:
        """Changes with what is stored: a set that was packed of the same is packed already."""

    @abc.abstractmethod
    def entry(self, index: int, columns: Sequence[str], media: bool = True) -> Entry:
        """What is stored of pair `index`.

        Args:
          index: which one.
          columns: give the fields of these columns that it has.
          media: give its picture or record, too.

        Raises:
          PairError: it cannot be read.
        """

    def video(self, index: int) -> Item:
        """The video of pair `index`, as `codecvit pack` takes it.

        Raises:
          PairError: it has none.
          ValueError: the source cannot hold videos.
        """
        raise ValueError(f"{self.name} holds pictures: videos come in tables, folders and tars")

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int, media: bool = True) -> Pair:
        """Pair `index`; its picture is not decoded.

        Args:
          index: which one.
          media: False leaves picture and record out.

        Raises:
          PairError: it cannot be used.
          IndexError: there is no such pair.
        """
        wanted = self.columns.text_columns
        if self.captions is not None:
            wanted = (*wanted, *self.captions.needs)
        entry = self.entry(index, wanted, media)
        key, fields = entry.key, entry.fields
        if self.captions is not None:
            fields = {**fields, **self.captions.of(entry)}
        texts = self.texts_of(key, fields)
        if not texts:
            named = ", ".join(self.columns.text_columns)
            raise PairError(key, "no text", f"nothing in the columns {named}")
        return Pair(key, texts, entry.image, entry.record)

    def texts_of(self, key: str, fields: Mapping[str, Any]) -> dict[str, str]:
        """The texts of the fields of pair `key`."""
        columns = self.columns
        texts: dict[str, str] = {}
        for name, candidates in columns.texts.items():
            given = next((fields[c] for c in candidates if not _absent(fields.get(c))), None)
            found = _as_texts(key, name, given, columns.lines)
            if len(columns.texts) == 1 and len(found) > 1:
                texts |= {f"text_{number}": text for number, text in enumerate(found)}
            elif found:
                texts[name] = found[0]
        return texts


def file_stamp(path: Path) -> str:
    """Hash of a file; of a very long one, of its size, beginning and end."""
    size = path.stat().st_size
    if size <= _HASHED:
        return sha256_of(path)
    with path.open("rb") as file:
        ends = file.read(_ENDS)
        file.seek(size - _ENDS)
        ends += file.read()
    return hashlib.sha256(str(size).encode() + ends).hexdigest()


def decode_picture(key: str, data: bytes) -> Image.Image:
    """As `Pair.picture`."""
    try:
        image = open_image(io.BytesIO(data), key)
    except MediaError as error:
        raise PairError(key, "undecodable", error.reason) from error
    if min(image.size) < MIN_SIDE:
        raise PairError(
            key,
            "undecodable",
            f"has {image.width} x {image.height} pixels: a side below {MIN_SIDE} shows nothing",
        )
    return image


def unique_keys(keys: Sequence[str]) -> list[str]:
    """The second and later ones of a key get the ending ~2, ~3, ..."""
    seen: dict[str, int] = {}
    given = set(keys)
    result = []
    for key in keys:
        count = seen[key] = seen.get(key, 0) + 1
        while count > 1 and f"{key}~{count}" in given:
            count = seen[key] = count + 1
        result.append(key if count == 1 else f"{key}~{count}")
    return result


def _absent(value: Any) -> bool:
    if isinstance(value, str | bytes):
        return not value.strip()
    if isinstance(value, float):
        return value != value  # how pandas writes that nothing is there
    return value is None


def _as_texts(key: str, name: str, value: Any, lines: bool) -> list[str]:
    """The non-empty texts of one value: a text, bytes, a number, or a list of them."""
    if isinstance(value, Mapping) and len(value) == 1:
        (value,) = value.values()  # TFDS: {"text": [...]}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [text for part in value for text in _as_texts(key, name, part, lines)]
    if _absent(value):
        return []
    text = _as_text(key, name, value)
    parts = text.split("\n") if lines else [text]
    return [part.strip() for part in parts if part.strip()]


def _as_text(key: str, name: str, value: Any) -> str:
    if isinstance(value, int | np.integer):
        return str(value)
    try:
        if isinstance(value, bytes):
            value = value.decode("utf-8")
        if not isinstance(value, str):
            raise PairError(key, "bad text", f"{name} is a {type(value).__name__}, not a text")
        value.encode("utf-8")  # half a surrogate pair, which JSON can hold, is no character
    except UnicodeError as error:
        raise PairError(key, "bad text", f"{name} is not UTF-8 ({error.reason})") from error
    if len(value) > MAX_CHARACTERS:
        raise PairError(
            key, "bad text", f"{name} has {len(value)} characters, more than {MAX_CHARACTERS}"
        )
    return value
