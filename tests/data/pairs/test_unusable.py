"""What pictures and texts may be, and what is said of a pair that cannot be used."""

from __future__ import annotations

import io

import numpy as np
import pytest
from made import picture_bytes, web, write_tar
from PIL import Image

from codecvit.data.pairs import PairError, open_pairs


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_pictures_of_other_modes_are_read(write_table):
    """CMYK, 16 bits, a palette with transparency, grey; of an animation the first frame."""
    red = Image.new("RGB", (20, 16), (200, 30, 40))
    sixteen = Image.fromarray(np.full((16, 20), 200 * 257, np.uint16))
    files = {
        "cmyk": encoded(red.convert("CMYK"), "JPEG", quality=95),
        "16 bit": encoded(sixteen, "PNG"),
        "palette": encoded(red.quantize(2), "PNG", transparency=1),
        "grey": encoded(Image.new("L", (20, 16), 200), "PNG"),
        "animated": encoded(
            red, "GIF", save_all=True, append_images=[Image.new("RGB", (20, 16), (0, 0, 255))]
        ),
    }
    table = write_table(len(files))
    for number, data in enumerate(files.values()):
        (table.parent / "images" / f"{number:03d}.png").write_bytes(data)
    source = open_pairs(f"table:{table}")
    for number, name in enumerate(files):
        image = source.read(number).picture()
        assert image.mode == "RGB" and image.size == (20, 16), name
        expected = (200, 200, 200) if name in ("16 bit", "grey") else (200, 30, 40)
        assert np.abs(np.array(image.getpixel((10, 8))) - expected).max() < 12, name


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (picture_bytes(3, kind="JPEG")[:-300], "cannot be read as an image"),
        (picture_bytes(3)[:60], "cannot be read as an image"),
        (picture_bytes(3, 1, 1), "1 x 1 pixels"),
        (picture_bytes(3, 400, 2), "400 x 2 pixels"),
        (b"<html>404</html>", "cannot be read as an image"),
    ],
)
def test_damaged_pictures_name_their_pair(write_table, data, message):
    table = write_table(2)
    (table.parent / "images" / "001.png").write_bytes(data)
    pair = open_pairs(f"table:{table}").read(1)
    with pytest.raises(PairError, match=f"pair-001: undecodable: .*{message}") as error:
        pair.picture()
    assert error.value.kind == "undecodable"


@pytest.mark.parametrize("limit", [1_000_000, 5_000_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(write_table, monkeypatch, limit):
    table = write_table(1)
    (table.parent / "images" / "000.png").write_bytes(encoded(Image.new("1", (3000, 3000)), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(PairError, match="pair-000: undecodable: .*(3000 x 3000|9000000) pixels"):
        open_pairs(f"table:{table}").read(0).picture()


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"caption": "", "re_caption": " \n"}, "no text", "columns text_0, caption"),
        ({"caption": None, "re_caption": None}, "no text", "columns text_0, caption"),
        ({"caption": "x" * 1_000_000}, "bad text", "text_0 has 1000000 characters"),
        ({"caption": "half \ud800"}, "bad text", "text_0 is not UTF-8"),
        ({"re_caption": {"a": 1, "b": 2}}, "bad text", "text_1 is a dict"),
        ({"path": "images/none.png"}, "dead", "cannot be read"),
        ({"path": ""}, "dead", "no picture"),
    ],
)
def test_unusable_rows_name_their_pair(write_table, row, kind, message):
    source = open_pairs(f"table:{write_table(2, rows={1: row})}")
    assert source.read(0).texts["text_0"] == web(0)
    with pytest.raises(PairError, match=f"pair-001: {kind}: .*{message}") as error:
        source.read(1)
    assert error.value.kind == kind


def test_a_damaged_line_costs_one_pair(write_table):
    table = write_table(3)
    lines = table.read_bytes().splitlines(keepends=True)
    for bad in (b'{"path": \n', lines[1].replace(b"picture", b"\xff\xfe"), b"[1, 2]\n"):
        table.write_bytes(lines[0] + bad + lines[2])
        source = open_pairs(f"table:{table}")
        assert source.keys == ["pair-000", "table-00000001", "pair-002"]
        with pytest.raises(PairError, match="table-00000001: bad text"):
            source.read(1)
        assert source.read(2).texts["text_0"] == web(2)


def test_a_parquet_text_that_is_not_utf8_costs_one_pair(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    captions = pyarrow.array([b"picture 0", b"\xff\xfe"]).cast(pyarrow.string(), safe=False)
    images = pyarrow.array([picture_bytes(0)] * 2)
    table = pyarrow.table({"key": ["a", "b"], "image": images, "caption": captions})
    parquet.write_table(table, tmp_path / "t.parquet")
    source = open_pairs(f"table:{tmp_path}/t.parquet")
    assert source.read(0).texts == {"text_0": web(0)}
    with pytest.raises(PairError, match="b: bad text: .*utf-8"):
        source.read(1)


def test_unusable_members_name_their_pair(tmp_path):
    files = [
        ("a.png", picture_bytes(1)),
        ("a.txt", b"\xff\xfe\x00"),
        ("b.txt", b"text without a picture"),
        ("c.png", picture_bytes(1)),
        ("c.json", b"{"),
        ("d.png", b""),
        ("d.txt", b"empty picture"),
        ("e.png", picture_bytes(1)),
    ]
    write_tar(tmp_path / "t.tar", files)
    source = open_pairs(f"webdataset:{tmp_path / 't.tar'}")
    expected = {
        "t/a": "bad text: text_0 is not UTF-8",
        "t/b": "dead: no picture among txt",
        "t/c": "bad text: its .json is not JSON",
        "t/d": "dead: 0 of 0 bytes",
        "t/e": "no text: nothing in the columns",
    }
    for index, (key, message) in enumerate(expected.items()):
        with pytest.raises(PairError, match=f"{key}: {message}"):
            source.read(index)
