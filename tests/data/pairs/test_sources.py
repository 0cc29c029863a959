"""Every kind of source gives the same pairs; columns, keys, what is refused."""

from __future__ import annotations

import gzip
import io
import json
import pickle

import pytest
from made import COUNT, picture_bytes, synthetic, web, write_tar

from codecvit.data.pairs import COLUMN_PRESETS, PairError, members, open_pairs
from codecvit.data.pairs.source import unique_keys


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


def test_presets_agree_on_the_names_of_texts():
    for columns in COLUMN_PRESETS.values():
        assert list(columns.texts) in (["text_0"], ["text_0", "text_1"])
