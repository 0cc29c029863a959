"""Made pictures, captions and tars for the tests of pairs."""

from __future__ import annotations

import io
import tarfile

import numpy as np
from PIL import Image

WORDS = """[PAD] [bos] [eos] [UNK] [CLS] picture number is big small red green a the , . !
0 1 2 3 4 5 6 7 8 9 ##0 ##1 ##2 ##3 ##4 ##5 ##6 ##7 ##8 ##9 one two three"""

COUNT = 7  # pairs of a source that is made of several files


def picture_bytes(number: int, width: int = 40, height: int = 32, kind: str = "PNG") -> bytes:
    """A plain picture: red says its number."""
    pixels = np.full((height, width, 3), (number * 5, 100, 200), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def web(number: int) -> str:
    return f"picture {number}"


def synthetic(number: int) -> str:
    return f"one {number}. two {number}! three {number}."


def write_tar(path, members) -> None:
    """A tar of (name, bytes)."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
