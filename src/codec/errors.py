"""The one error of unusable media."""

from __future__ import annotations

import os


class MediaError(ValueError):
    """A video or image file that cannot be used: missing, damaged beyond use, or without pictures.

    Attributes:
      path: the file, as the caller named it.
      reason: what is wrong with it.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path = os.fspath(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        # Worker processes send it home: the default would rebuild it from the message alone.
        return type(self), (self.path, self.reason)
