"""Every kind of source gives the same pairs; columns, keys, joins, what is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle

import numpy as np
import pytest
from made import picture_bytes, synthetic, web, write_tar
from PIL import Image

from codecvit.data.pairs import COLUMN_PRESETS, PairError, members, open_pairs
from codecvit.data.pairs.source import unique_keys

COUNT = 7


def numbers(source):
    """Per pair the number that its picture's colour tells."""
    return [source.read(i).picture().getpixel((3, 3))[0] // 5 for i in range(len(source))]


def check(source, text_1=True):
    """Pair i has picture i and the captions of i, also in another process and in any order."""
    assert len(source) == len(set(source.keys)) == COUNT
    for candidate in (source, pickle.loads(pickle.dumps(source))):  # noqa: S301
        for number in (3, 0, COUNT - 1, *range(COUNT)):
            pair = candidate.read(number)
            assert pair.key == source.keys[number]
            said = {"text_0": web(number)} | ({"text_1": synthetic(number)} if text_1 else {})
            assert pair.texts == said
            assert pair.picture().getpixel((3, 3)) == (number * 5, 100, 200)


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


@pytest.mark.parametrize("pattern", ["shard-*.tar", "shard-{00..01}.tar", "shard-0{0,1}.tar"])
def test_webdataset(tars, pattern):
    source = open_pairs(f"webdataset:{tars}/{pattern}")
    check(source)
    assert source.keys[0] == "shard-00/00000" and source.keys[-1] == "shard-01/00006"
    # A tar is no class.
    with pytest.raises(PairError, match="no text"):
        open_pairs(f"webdataset:{tars}/{pattern}", preset="imagenet").read(0)


def test_tars_and_pictures_behind_urls(tars, write_table):
    check(open_pairs(f"webdataset:file://{tars}/shard-{{00..01}}.tar"))
    rows = {n: {"path": f"file://{tars}/images/{n:03d}.png"} for n in range(COUNT)}
    rows[COUNT] = {"path": f"file://{tars}/images/gone.png"}
    source = open_pairs(f"table:{write_table(COUNT + 1, rows=rows)}")
    assert source.read(3).picture().getpixel((3, 3)) == (15, 100, 200)
    with pytest.raises(PairError, match="dead: .*gone.png cannot be read"):
        source.read(COUNT)


def test_tars_are_indexed_once(tars, monkeypatch):
    open_pairs(f"webdataset:{tars}/*.tar")

    def fail(*_, **__):
        raise AssertionError("the headers are read again")

    with monkeypatch.context() as patch:
        patch.setattr(members.tarfile, "open", fail)
        check(open_pairs(f"webdataset:{tars}/*.tar"))
    # A tar that changes is read anew.
    write_tar(tars / "shard-01.tar", [("9.png", picture_bytes(9)), ("9.txt", b"picture 9")])
    again = open_pairs(f"webdataset:{tars}/*.tar")
    assert len(again) == 5 and again.read(4).texts == {"text_0": "picture 9"}


def test_folder(tmp_path):
    for n in range(COUNT):
        folder = tmp_path / "data" / f"class {n % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.png").write_bytes(picture_bytes(n))
        (folder / f"{n}.txt").write_text(web(n))
        (folder / f"{n}.re_caption").write_text(synthetic(n))
    (tmp_path / "data" / "notes.txt").write_text("no picture of that name")
    source = open_pairs(f"folder:{tmp_path / 'data'}")
    assert numbers(source) == [0, 2, 4, 6, 1, 3, 5]
    assert source.keys[0] == "class_0/0"
    assert source.read(5).texts == {"text_0": web(3), "text_1": synthetic(3)}
    named = open_pairs(f"folder:{tmp_path / 'data'}", preset="imagenet")
    assert [named.read(i).texts["text_0"] for i in (0, 6)] == ["class 0", "class 1"]


def test_jsonl(write_table):
    check(open_pairs(f"table:{write_table(COUNT)}"))


def test_a_table_in_parts(write_table, tmp_path):
    """One source; a key that comes twice is told apart, also in messages."""
    lines = write_table(COUNT).read_text().splitlines(keepends=True)
    (tmp_path / "part-1.jsonl").write_text("".join(lines[:3]))
    (tmp_path / "part-2.jsonl").write_text("".join(lines[3:]))
    check(open_pairs(f"table:{tmp_path}/part-*.jsonl"))
    (tmp_path / "part-2.jsonl").write_text("".join([lines[0], lines[1].replace("images", "gone")]))
    source = open_pairs(f"table:{tmp_path}/part-{{1,2}}.jsonl")
    assert source.keys[3:] == ["pair-000~2", "pair-001~2"]
    assert source.read(3).key == "pair-000~2" and source.read(3).texts["text_0"] == web(0)
    with pytest.raises(PairError, match="^pair-001~2: dead"):
        source.read(4)


@pytest.mark.parametrize("picture", ["path", "bytes", "struct"])
def test_parquet(tmp_path, picture):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "0.png").write_bytes(b"")
    images = [picture_bytes(n) for n in range(COUNT)]
    if picture == "path":
        for n, image in enumerate(images):
            (tmp_path / f"{n}.png").write_bytes(image)
        images = [f"{n}.png" for n in range(COUNT)]
    elif picture == "struct":
        images = [{"bytes": image, "path": "gone.png"} for image in images]
    columns = {
        "image": images,
        "uid": [f"u{n}" for n in range(COUNT)],
        "caption": [web(n) for n in range(COUNT)],
        "re_caption": [synthetic(n) for n in range(COUNT)],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet", row_group_size=2)
    source = open_pairs(f"table:{tmp_path / 't.parquet'}")
    check(source)
    assert source.keys[3] == "u3"


def test_tfds_without_tensorflow(tmp_path):
    """A TFDS folder that is made here, as OpenVision's are laid out."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features

    class MadePairs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path  # a class of a test lies in no package

        def _info(self):
            described = features.FeaturesDict(
                {
                    "jpg": features.Image(shape=(None, None, 3)),
                    "txt": features.Text(),
                    "llava_caption": features.Text(),
                    "label": features.ClassLabel(names=["cat", "dog"]),
                    "captions": features.Sequence(features.Text()),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=described)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for n in range(COUNT):
                yield (
                    n,
                    {
                        "jpg": io.BytesIO(picture_bytes(n)),
                        "txt": web(n),
                        "llava_caption": synthetic(n),
                        "label": n % 2,
                        "captions": [f"a {n}", f"b {n}"],
                    },
                )

    builder = MadePairs(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    spec = f"tfds:{builder.data_path}"
    source = open_pairs(spec, preset="openvision")
    order = numbers(source)
    assert sorted(order) == list(range(COUNT))
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    for index, n in enumerate(order):
        assert again.read(index).texts == {"text_0": web(n), "text_1": synthetic(n)}
    labels = open_pairs(f"{spec}#train[:3]", preset="imagenet")
    assert [labels.read(i).texts["text_0"] for i in range(3)] == [
        ["cat", "dog"][n % 2] for n in order[:3]
    ]
    captions = open_pairs(spec, preset="coco").read(0).texts
    assert captions == {"text_0": f"a {order[0]}", "text_1": f"b {order[0]}"}


def test_tfds_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'codecvit\[tfds\]'"):
        open_pairs(f"tfds:{tmp_path}")


@pytest.mark.parametrize(
    ("preset", "row", "texts"),
    [
        ("recap-datacomp", {"org_caption": "w", "re_caption": "s"}, ["w", "s"]),
        ("openvision", {"txt": "w", "llava_caption": "s"}, ["w", "s"]),
        ("coco", {"captions": ["a", " ", "b", "c"]}, ["a", "b", "c"]),
        ("flickr30k", {"caption": "a\nb\n\nc\n"}, ["a", "b", "c"]),
        ("flickr30k", {"caption": ["a", "b"]}, ["a", "b"]),
        ("imagenet", {"class_name": "tench", "label": 0}, ["tench"]),
        ("imagenet", {"label": 7}, ["7"]),
        ("laion", {"TEXT": "w", "caption": None}, ["w"]),
        ("default", {"text_0": "w", "text_1": float("nan")}, ["w"]),
    ],
)
def test_presets(tmp_path, preset, row, texts):
    (tmp_path / "p.png").write_bytes(picture_bytes(1))
    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps({"image": "p.png", **row}))
    found = open_pairs(f"table:{table}", preset=preset).read(0).texts
    assert list(found.values()) == texts
    assert list(found) == [f"text_{n}" for n in range(len(texts))]


def test_columns_can_be_named(write_table):
    table = write_table(3, rows={n: {"alt": f"alt {n}", "nr": n} for n in range(3)})
    columns = "text_0=none|alt,text_1=caption,key=nr,image=path"
    source = open_pairs(f"table:{table}", columns=columns)
    assert source.keys == ["0", "1", "2"]
    assert source.read(2).texts == {"text_0": "alt 2", "text_1": web(2)}


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


def test_keys_are_unique():
    assert unique_keys(["a", "b", "a", "a~2", "a"]) == ["a", "b", "a~3", "a~2", "a~4"]


def test_a_compressed_or_cut_tar_is_refused(tars):
    whole = (tars / "shard-00.tar").read_bytes()
    bad = tars / "bad.tar"
    for content in (gzip.compress(whole), whole[:700], b"no tar" * 200):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="bad.tar is"):
            open_pairs(f"webdataset:{bad}")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("tar:x", {}, "'tar' is none of"),
        ("table:none.jsonl", {}, "does not exist"),
        ("webdataset:none-*.tar", {}, "no such file"),
        ("table", {}, "must be one of"),
        ("table:x", {"preset": "coca"}, "preset = 'coca'"),
        ("table:x", {"columns": "text=a"}, "'text' is none of"),
        ("table:x", {"columns": "text_0"}, "must be ROLE=COLUMN"),
    ],
)
def test_specs_that_cannot_work_are_refused(spec, options, message):
    with pytest.raises(ValueError, match=message):
        open_pairs(spec, **options)


def test_a_table_without_pictures_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"caption": "a"}\n')
    with pytest.raises(ValueError, match="no column for pictures.*among caption"):
        open_pairs(f"table:{tmp_path / 't.jsonl'}")


# --- what pairs may be --------------------------------------------------------------------------


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


def test_presets_agree_on_the_names_of_texts():
    for columns in COLUMN_PRESETS.values():
        assert list(columns.texts) in (["text_0"], ["text_0", "text_1"])
