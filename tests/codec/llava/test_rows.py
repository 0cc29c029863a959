"""Reading rows in pieces."""

from __future__ import annotations

import json

import pytest

from codecvit.codec.llava import rows as rows_module
from codecvit.codec.llava.rows import RowError, iter_rows, json_line

ROWS = [{"id": i, "text": "x" * (i * 7 % 50) + '"]},{\\ é\u2028电'} for i in range(40)]


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_rows_come_whole_in_whatever_pieces_the_file_is_read(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(rows_module, "_CHUNK", chunk)
    path = tmp_path / "rows"
    texts = [json.dumps(ROWS, indent=indent, ensure_ascii=False)]
    if indent is None:
        texts.append("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS))
        texts.append("\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n")
    for text in texts:
        for mark in ("", "\ufeff"):
            path.write_bytes((mark + text).encode())
            assert list(iter_rows(path)) == list(enumerate(ROWS))


def test_a_line_that_is_no_object_does_not_stop_the_rest(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n{"id": \n[3]\n{"id": 4}')
    found = [row for _, row in iter_rows(path)]
    assert found[0] == {"id": 1} and found[3] == {"id": 4}
    assert all(isinstance(row, RowError) for row in found[1:3])


@pytest.mark.parametrize("text", [b"[", b'[{"id": 1}', b'[{"id": 1} {]', b'\xff{"id": 1}'])
def test_a_file_that_is_no_json_is_an_error(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"rows\.json: is no"):
        list(iter_rows(path))


def test_lines_hold_anything_that_json_holds():
    row = {"id": "\ud800", "text": "\u2028电"}
    assert json_line(row).isascii() and json_line(row).count(b"\n") == 1
    assert json.loads(json_line(row)) == row
