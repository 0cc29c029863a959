"""A folder of numbered images is a video, if it states its frame rate.

The rate stands in a text file `fps.txt` in the folder or in the one above it (a data set of frame
folders states it once), so that a path alone is enough wherever a video is expected.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from .errors import MediaError

RATE_FILE = "fps.txt"
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def is_image_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder states a frame rate and holds numbered images."""
    folder = Path(path)
    return folder.is_dir() and _rate_file(folder) is not None and bool(_numbered(folder))


class ImageFolder:
    """The frames of an image folder.

    Attributes:
      paths: the images by number; the number is the last one in a file's name.
      rate: frames a second.
      seconds_N: float64, time of each since the first: a missing number leaves a gap.

    Raises:
      MediaError: no rate, no numbered image, or two images of one number.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.rate = _read_rate(self.folder)
        numbered = _numbered(self.folder)
        if not numbered:
            raise MediaError(folder, "is a folder without numbered images")
        numbers = [number for number, _ in numbered]
        for i in range(1, len(numbers)):
            if numbers[i] == numbers[i - 1]:
                names = f"{numbered[i - 1][1].name} and {numbered[i][1].name}"
                raise MediaError(folder, f"has two images of number {numbers[i]}: {names}")
        self.paths = [path for _, path in numbered]
        self.seconds_N = (np.array(numbers, np.float64) - numbers[0]) / self.rate

    def read(self, index: int) -> VideoFrame:
        """One image.

        Raises:
          MediaError: it cannot be read.
        """
        path = self.paths[index]
        try:
            with av.open(os.fspath(path)) as container:
                if container.streams.video:
                    for frame in container.decode(container.streams.video[0]):
                        return frame
        except (av.FFmpegError, OSError) as error:
            raise MediaError(path, f"cannot be read as an image ({error})") from error
        raise MediaError(path, "holds no picture")


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    found = []
    for path in folder.iterdir():
        digits = re.findall(r"\d+", path.stem)
        if path.suffix.lower() in _SUFFIXES and digits:
            found.append((int(digits[-1]), path))
    return sorted(found)


def _rate_file(folder: Path) -> Path | None:
    for place in (folder, folder.absolute().parent):
        if (place / RATE_FILE).is_file():
            return place / RATE_FILE
    return None


def _read_rate(folder: Path) -> float:
    file = _rate_file(folder)
    if file is None:
        raise MediaError(
            folder, f"is a folder: to be read as a video it needs its frame rate in {RATE_FILE}"
        )
    text = file.read_text(encoding="utf-8", errors="replace").strip()
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise MediaError(file, f"holds {text[:40]!r}, not a frame rate above 0")
    return rate
