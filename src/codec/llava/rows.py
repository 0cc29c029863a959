"""Rows of LLaVA data sets: read from JSON or JSONL, and rewritten for mosaics."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ...files import PathOrUrl, is_url, open_read

VIDEO_TOKEN = "<video>"
IMAGE_TOKEN = "<image>"
_SPEAKERS = ("human", "user")
_CHUNK = 1 << 20


class RowError(ValueError):
    """A row that cannot be used."""


def iter_rows(path: PathOrUrl) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """The rows of a JSON array or of a JSONL file, one by one: such files may have gigabytes.

    Args:
      path: file or URL.

    Yields:
      (number from 0, row); a RowError in place of a line that is no JSON object.

    Raises:
      ValueError: an array that is no JSON.
      OSError: the file cannot be read.
    """
    with open_read(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            head = text.read(_CHUNK)
            rows = _array(text, head, path) if head.lstrip().startswith("[") else _lines(text, head)
            for number, row in enumerate(rows):
                if not isinstance(row, dict | RowError):
                    row = RowError(f"row {number} is no JSON object")
                yield number, row
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is not UTF-8 text ({error})") from error


def video_of(row: Mapping[str, Any]) -> str | None:
    """The video of a row, None for a row without one.

    Raises:
      RowError: `video` is neither a path nor a list of one path, or the row has images besides.
    """
    video = row.get("video")
    if isinstance(video, list) and len(video) == 1:
        video = video[0]
    if video is None or video in ("", []):
        return None
    if not isinstance(video, str):
        raise RowError(f"video = {json.dumps(video)} must be one path")
    if row.get("image"):
        raise RowError("has both video and image: only one of them can be shown")
    return video


def images_of(row: Mapping[str, Any]) -> list[str]:
    """The images of a row, `image` or `images`, a path or a list; else raises RowError."""
    if row.get("image") and row.get("images"):
        raise RowError("has both image and images: leave one of them out")
    images = row.get("image") or row.get("images") or []
    images = [images] if isinstance(images, str) else images
    if not (isinstance(images, list) and all(isinstance(image, str) for image in images)):
        raise RowError(f"image = {json.dumps(images)} must be a path or a list of paths")
    return images


def with_mosaics(row: Mapping[str, Any], images: Sequence[str], positions: str) -> dict[str, Any]:
    """A video row as a row of images.

    Args:
      row: with `video` and `conversations`. One place for the video is filled: `<video>`, or a
        single `<image>`; without any, the beginning of the first human turn. As many `<image>` as
        there are images stay as they are.
      images: paths of the mosaics.
      positions: path of positions_thw.npy.

    Returns:
      The row with `image` and `positions_thw` instead of `video`; all other fields as they were.

    Raises:
      RowError: no human turn, or a number of places that fits neither one video nor its images.
    """
    turns = conversation(row)
    filled = "\n".join([IMAGE_TOKEN] * len(images))
    videos, pictures = (count_tokens(turns, token) for token in (VIDEO_TOKEN, IMAGE_TOKEN))
    if videos == 1 and pictures == 0:
        turns = _replaced(turns, VIDEO_TOKEN, filled)
    elif videos == 0 and pictures == 1:
        turns = _replaced(turns, IMAGE_TOKEN, filled)
    elif videos == 0 and pictures == 0:
        first = next((i for i, turn in enumerate(turns) if turn.get("from") in _SPEAKERS), None)
        if first is None:
            raise RowError("has no human turn that could show the video")
        turns = [dict(turn) for turn in turns]
        turns[first]["value"] = f"{filled}\n{turns[first]['value']}"
    elif videos or pictures != len(images):
        raise RowError(
            f"has {videos} {VIDEO_TOKEN} and {pictures} {IMAGE_TOKEN} for one video of "
            f"{len(images)} mosaics: write {VIDEO_TOKEN} once"
        )
    out = {name: value for name, value in row.items() if name != "video"}
    return {**out, "conversations": turns, "image": list(images), "positions_thw": positions}


def conversation(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns of a row.

    Raises:
      RowError: `conversations` is no list of turns with text in `value`.
    """
    turns = row.get("conversations")
    if not (
        isinstance(turns, list)
        and turns
        and all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns)
    ):
        raise RowError("conversations must be a list of turns, each with `from` and `value`")
    return turns


def count_tokens(turns: Sequence[Mapping[str, Any]], token: str) -> int:
    """How often a token stands in a conversation."""
    return sum(turn["value"].count(token) for turn in turns)


def json_line(value: Mapping[str, Any]) -> bytes:
    """A line of a JSONL file, in ASCII: some readers also split lines at U+2028 and the like."""
    return (json.dumps(value) + "\n").encode()


def folder_of(path: PathOrUrl) -> str:
    """The folder that holds a file, absolute."""
    text = str(path)
    if is_url(text):
        return text.rpartition("/")[0]
    return str(Path(text).absolute().parent)


def _replaced(turns: Sequence[Mapping[str, Any]], token: str, text: str) -> list[dict[str, Any]]:
    return [{**turn, "value": turn["value"].replace(token, text)} for turn in turns]


def _lines(text: IO[str], head: str) -> Iterator[Any]:
    # Not splitlines: it would also split at characters that JSON strings may hold.
    rest = ""
    for chunk in itertools.chain([head], iter(lambda: text.read(_CHUNK), ""), ["\n"]):
        lines = (rest + chunk).split("\n")
        rest = lines.pop()
        for line in lines:
            if line.strip():
                yield _parsed(line)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return RowError(f"is no JSON ({error}): {line[:60]!r}")


def _array(text: IO[str], buffer: str, path: PathOrUrl) -> Iterator[Any]:
    """The elements of an array; only those of one chunk are held."""
    decoder = json.JSONDecoder()
    place, end = buffer.index("[") + 1, False
    while True:
        while place < len(buffer) and buffer[place] in " \t\r\n,":
            place += 1
        if place < len(buffer) and buffer[place] == "]":
            return
        try:
            value, place = decoder.raw_decode(buffer, place)
        except ValueError as error:
            if end:
                raise ValueError(f"{path}: is no JSON array ({error})") from error
            more = text.read(max(_CHUNK, len(buffer) - place))  # doubling: linear time in all
            buffer, place, end = buffer[place:] + more, 0, not more
            continue
        yield value
