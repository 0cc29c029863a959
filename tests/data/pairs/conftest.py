"""Made pairs: pictures whose colour tells their number, and two captions of each."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from codecvit.data.tokenizers import open_tokenizer

WORDS = """[PAD] [bos] [eos] [UNK] [CLS] picture number is big small red green a the , . !
0 1 2 3 4 5 6 7 8 9 ##0 ##1 ##2 ##3 ##4 ##5 ##6 ##7 ##8 ##9 one two three"""


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


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODECVIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(WORDS.split()) + "\n")
    return open_tokenizer(path)


@pytest.fixture
def write_table(tmp_path):
    """Writes pictures and a .jsonl; rows may be replaced or given fields of their own."""

    def write(count: int = 12, name: str = "table.jsonl", rows: dict | None = None):
        (tmp_path / "images").mkdir(exist_ok=True)
        lines = []
        for number in range(count):
            file = tmp_path / "images" / f"{number:03d}.png"
            file.write_bytes(picture_bytes(number))
            row = {
                "key": f"pair-{number:03d}",
                "path": f"images/{number:03d}.png",
                "caption": web(number),
                "re_caption": synthetic(number),
            }
            lines.append(json.dumps(row | (rows or {}).get(number, {})))
        table = tmp_path / name
        table.write_text("\n".join(lines) + "\n")
        return table

    return write
