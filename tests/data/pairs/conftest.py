"""Made pairs: pictures whose colour tells their number, and two captions of each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from codecvit.data.tokenizers import open_tokenizer

# Makes `made.py` of this folder importable under pytest's importlib mode.
sys.path.insert(0, str(Path(__file__).parent))

from made import WORDS, picture_bytes, synthetic, web  # noqa: E402


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
