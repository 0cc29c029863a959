"""The part of a video that a question is about, and the assets that belong to it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from ..container import open_video
from ..image_folder import ImageFolder, is_image_folder
from ..sampling import read_index

_FIELDS = ("start", "end", "end_frame")


@dataclasses.dataclass(frozen=True)
class Span:
    """Bounds within a video; none of them means all of it.

    Attributes:
      start: seconds; frames before it are not shown.
      end: seconds; frames from it on are not shown.
      end_frame: number of the last frame that is shown, from 0.

    Raises:
      ValueError: nothing lies between the bounds.
    """

    start: float | None = None
    end: float | None = None
    end_frame: int | None = None

    def __post_init__(self) -> None:
        if self.start is not None and self.start <= 0:
            object.__setattr__(self, "start", None)  # the same as none, so the same assets
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and not value < float("inf"):
                raise ValueError(f"{name} = {value!r} must be a number of seconds")
        if self.end is not None and self.end <= (self.start or 0.0):
            raise ValueError(f"end = {self.end} must be greater than start = {self.start or 0.0}")
        if self.end_frame is not None and self.end_frame < 0:
            raise ValueError(f"end_frame = {self.end_frame} must be 0 or more")

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Span:
        """The span that a row of a benchmark states.

        Raises:
          ValueError: `start`, `end` or `end_frame` is no number, or they leave nothing.
        """
        found = {name: row[name] for name in _FIELDS if row.get(name) is not None}
        for name, value in found.items():
            whole = name == "end_frame"
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise ValueError(f"{name} = {value!r} must be a number")
        return cls(**found)

    @property
    def whole(self) -> bool:
        """All of the video."""
        return self == Span()

    def row(self) -> dict[str, float | int]:
        """The fields of a row that state it."""
        return {n: getattr(self, n) for n in _FIELDS if getattr(self, n) is not None}

    @property
    def suffix(self) -> str:
        """What is added to the key of the whole video's assets; empty for all of it."""
        if self.whole:
            return ""
        text = f"_{_digits(self.start or 0.0)}-" + ("" if self.end is None else _digits(self.end))
        return text if self.end_frame is None else f"{text}f{self.end_frame}"

    def seconds(self, path: str | os.PathLike[str]) -> tuple[float | None, float | None]:
        """(start, end) in seconds of a video, the number of the last frame looked up in it.

        Raises:
          MediaError: the file cannot be used.
          ValueError: the bounds leave nothing of this video.
        """
        if self.end_frame is None:
            return self.start, self.end
        after = self.end_frame + 1
        if is_image_folder(path):
            times = ImageFolder(path).seconds_N
        else:
            with open_video(path) as (container, stream):
                index = read_index(container, stream)
                assert stream.time_base is not None
                times = (index.pts_N - index.pts_N[:1]) * float(stream.time_base)
        if not len(times):
            raise ValueError(
                f"{os.fspath(path)}: end_frame = {self.end_frame} needs a file whose packets state "
                "their times: give `end` in seconds"
            )
        if after >= len(times):
            return self.start, self.end
        cut = float(times[after])
        end = cut if self.end is None else min(cut, self.end)
        if end <= (self.start or 0.0):
            raise ValueError(
                f"{os.fspath(path)}: end_frame = {self.end_frame} lies before start = {self.start}"
            )
        return self.start, end


def _digits(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")
