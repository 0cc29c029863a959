"""Captions that are published apart from their pictures find them, by key or by hash."""

from __future__ import annotations

import hashlib
import json

import pytest
from made import COUNT, picture_bytes, synthetic, web

from codecvit.data.pairs import open_pairs


@pytest.mark.parametrize("join", ["key", "sha256"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_captions_apart_are_joined(tars, join, kind):
    """By key: the name within its tar; by sha256: what the .json says of the picture."""
    rows = [
        {
            "key": f"{n:05d}",
            "sha256": f"hash{n}",
            "org_caption": f"the web {n}",
            "re_caption": f"new {n}",
        }
        for n in reversed(range(1, COUNT))
    ]
    path = tars / f"captions*.{kind}"
    if kind == "jsonl":
        for part in (0, 1):
            text = "".join(json.dumps(row) + "\n" for row in rows[part::2])
            (tars / f"captions-{part}.jsonl").write_text(text)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), tars / "captions.parquet")
    source = open_pairs(
        f"webdataset:{tars}/*.tar", preset="recap-datacomp", captions=path, join=join
    )
    assert source.read(5).texts == {"text_0": "the web 5", "text_1": "new 5"}
    assert source.read(0).texts == {"text_0": web(0), "text_1": synthetic(0)}  # not in the table
    assert len(source.captions) == COUNT - 1


def test_sha256_of_the_picture_joins_where_no_field_tells_it(write_table, tmp_path):
    rows = [
        {"sha256": hashlib.sha256(picture_bytes(n)).hexdigest(), "caption": f"joined {n}"}
        for n in (2, 0)
    ]
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_pairs(f"table:{write_table(3)}", captions=path, join="sha256")
    assert [source.read(n).texts["text_0"] for n in range(3)] == ["joined 0", web(1), "joined 2"]


def test_captions_that_contradict_each_other_are_refused(write_table, tmp_path):
    table, path = write_table(3), tmp_path / "captions.jsonl"
    path.write_text('{"key": "a", "caption": "x"}\n{"key": "a", "caption": "y"}\n')
    with pytest.raises(ValueError, match="'a' is there twice"):
        open_pairs(f"table:{table}", captions=path)
    path.write_text('{"key": "a", "other": "x"}\n')
    with pytest.raises(ValueError, match="none of the columns"):
        open_pairs(f"table:{table}", captions=path)
    with pytest.raises(ValueError, match="join = 'url'"):
        open_pairs(f"table:{table}", captions=path, join="url")
