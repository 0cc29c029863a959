"""Is an upload what it says, and small enough? Looked at before anything is decoded.

FFmpeg tells formats by their content, and some of them are lists of other files or addresses: an
upload of that kind, whatever its name, would show files of the server. Pillow hands PostScript to
another program. Only formats that hold their pictures themselves are read.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import av
from PIL import Image

from ...codec.container import open_video
from ...codec.errors import MediaError
from ...codec.sampling import read_index
from .sight import IMAGES

VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".ogv"),
    *(".wmv", ".3gp", ".gif"),
)
ENDINGS = (*VIDEOS, *IMAGES)

# Names that FFmpeg and Pillow give to formats.
_DEMUXERS = "mov,matroska,avi,mpeg,mpegts,flv,ogg,asf,gif"
_PICTURES = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")


class UploadError(ValueError):
    """An upload that is not read."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an upload may be.

    Attributes:
      bytes: of the file.
      seconds: of a video.
      pixels: of one frame, or of an image.
      frames: of a video, each of which may have to be decoded.

    Raises:
      ValueError: a limit below 1.
    """

    bytes: int = 200_000_000
    seconds: float = 600.0
    pixels: int = 4096 * 2304
    frames: int = 60_000

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) >= 1:
                raise ValueError(f"{field.name} = {getattr(self, field.name)} must be at least 1")


def check_upload(path: Path, limits: Limits) -> None:
    """Raises an UploadError, which names the file without its folder, unless it may be read."""
    size, ending = path.stat().st_size, path.suffix.lower()
    if ending not in ENDINGS:
        raise UploadError(f"{path.name}: only {', '.join(ENDINGS)} are read")
    if not size:
        raise UploadError(f"{path.name} is empty")
    if size > limits.bytes:
        raise UploadError(f"{path.name} has {size:,} bytes, more than {limits.bytes:,}")
    try:
        if ending in IMAGES:
            _check_image(path, limits)
        else:
            _check_video(path, limits)
    except MediaError as error:
        raise UploadError(f"{path.name} {error.reason}") from error


def sweep(folder: Path, seconds: float) -> None:
    """Removes files that lie below a folder for longer than this, and folders left empty."""
    oldest = time.time() - seconds
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        try:
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.lstat().st_mtime <= oldest:
                path.unlink()
        except OSError:  # somebody else was faster, or writes there just now
            continue


def _check_image(path: Path, limits: Limits) -> None:
    try:
        with Image.open(path, formats=_PICTURES) as image:
            _check_pixels(path, image.width, image.height, limits)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UploadError):
            raise
        raise UploadError(f"{path.name} is no image of {', '.join(_PICTURES)}") from error


def _check_video(path: Path, limits: Limits) -> None:
    try:
        av.open(os.fspath(path), options={"format_whitelist": _DEMUXERS}).close()
    except (av.FFmpegError, OSError) as error:
        raise UploadError(f"{path.name} is no video of the formats that are read") from error
    with open_video(path) as (container, stream):
        _check_pixels(path, stream.width, stream.height, limits)
        index = read_index(container, stream)
        stated = float(container.duration or 0) / av.time_base
        if index.usable and stream.time_base is not None:
            # What the packets say counts: headers are not trusted.
            stated = float((index.pts_N[-1] - index.pts_N[0]) * stream.time_base)
    if stated > limits.seconds:
        raise UploadError(f"{path.name} lasts {stated:.0f} seconds, more than {limits.seconds:.0f}")
    if index.count > limits.frames:
        raise UploadError(f"{path.name} has {index.count:,} frames, more than {limits.frames:,}")


def _check_pixels(path: Path, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise UploadError(f"{path.name} has {width} x {height} pixels, more than {limits.pixels:,}")
