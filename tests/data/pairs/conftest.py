"""Made pairs: pictures whose colour tells their number, and two captions of each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from codecvit.data.tokenizers import open_tokenizer

# Makes `made.py` of this folder importable under pytest's importlib mode.
sys.path.insert(0, str(Path(__file__).parent))

from made import COUNT, WORDS, picture_bytes, synthetic, web, write_tar  # noqa: E402


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


@pytest.fixture
def tars(tmp_path):
    """Two tars; members of a pair in any order, files of other kinds among them."""
    for shard, range_ in enumerate([range(4), range(4, COUNT)]):
        found = []
        for n in range_:
            caption = {"re_caption": synthetic(n), "sha256": f"hash{n}", "width": 40}
            files = [
                (f"{n:05d}.txt", web(n).encode()),
                (f"{n:05d}.png", picture_bytes(n)),
                (f"{n:05d}.json", json.dumps(caption).encode()),
                (f"{n:05d}.npz", b"other"),
            ]
            found += files if n % 2 else files[::-1]
        write_tar(tmp_path / f"shard-{shard:02d}.tar", found)
    return tmp_path
