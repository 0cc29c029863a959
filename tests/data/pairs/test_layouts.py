"""Small made copies of COCO and Flickr30k, in the layouts of their authors, as pairs."""

from __future__ import annotations

import json
import shutil

import pytest
from made import picture_bytes

from codecvit.__main__ import main
from codecvit.data.pairs import PairError, PairTextConfig, make_pair_loader, open_pairs
from codecvit.data.pairs.layouts import LAYOUTS
from codecvit.data.records import RecordSet

FIVE = [f"A sentence, number {i}." for i in range(5)]
FIRST_FIVE = ",".join(f"text_{i}=caption_{i}" for i in range(5))


def put(path, content=b"not empty: nothing is decoded here"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(content)


def captions(source):
    return [list(source.read(i, media=False).texts.values()) for i in range(len(source))]


def missing(source):
    """Keys of the pairs whose picture is not there; the bytes of the others are what was put."""
    found = []
    for index, key in enumerate(source.keys):
        try:
            assert source.read(index).image
        except PairError as error:
            assert (error.key, error.kind) == (key, "dead")
            found.append(key)
    return found


def coco(root, year, images="{split}/{name}", annotations="annotations"):
    """Three images: two captions, six captions in another order, one caption; the last missing."""
    prefix = "COCO_val2014_" if year == 2014 else ""
    names = [f"{prefix}{i:012d}.jpg" for i in (139, 285, 632)]
    texts = [(0, "A woman stands ."), (1, FIVE[0]), (2, "A bed."), (0, " A room\nwith  chairs. ")]
    texts += [(1, text) for text in (*FIVE[1:], "One more.")]
    content = {
        "images": [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"image_id": 10 + i, "id": k, "caption": text} for k, (i, text) in enumerate(texts)
        ],
    }
    put(root / annotations / f"captions_val{year}.json", content)
    for number, name in enumerate(names[:2]):
        put(root / images.format(split=f"val{year}", name=name), picture_bytes(number))
    return names


@pytest.mark.parametrize("images", ["{split}/{name}", "images/{split}/{name}", "images/{name}"])
@pytest.mark.parametrize("year", [2014, 2017])
def test_coco(tmp_path, year, images):
    names = coco(tmp_path, year, images)
    source = open_pairs(f"coco{year}:{tmp_path}")
    assert source.keys == names
    assert captions(source) == [
        ["A woman stands .", "A room with chairs."],
        [*FIVE, "One more."],
        ["A bed."],
    ]
    assert source.read(1).image == picture_bytes(1)
    assert missing(source) == [names[2]] and source.unusable == ()
    with pytest.raises(PairError, match=f"val{year}/{names[2]} cannot be read"):
        source.read(2)
    five = open_pairs(f"coco{year}:{tmp_path}", columns=FIRST_FIVE)
    assert captions(five) == [captions(source)[0], FIVE, ["A bed."]]


def karpathy(root, name, entries):
    images = [
        {"split": split, "filename": file, "sentences": [{"raw": text} for text in texts]}
        | ({"filepath": folder} if folder else {})
        for split, folder, file, texts in entries
    ]
    put(root / f"dataset_{name}.json", {"images": images, "dataset": name})


def test_the_karpathy_split_of_coco(tmp_path):
    """Its validation and test images come from both folders of COCO."""
    entries = [
        ("test", "val2014", "COCO_val2014_000000391895.jpg", FIVE),
        ("restval", "val2014", "COCO_val2014_000000000042.jpg", FIVE),
        ("train", "train2014", "COCO_train2014_000000000009.jpg", FIVE),
        ("test", "val2014", "COCO_val2014_000000060623.jpg", ["A young girl."]),
    ]
    karpathy(tmp_path, "coco", entries)
    for _, folder, name, _ in entries:
        put(tmp_path / folder / name, name)
    source = open_pairs(f"coco-karpathy:{tmp_path}")
    assert source.keys == [entries[0][2], entries[3][2]]
    assert captions(source) == [FIVE, ["A young girl."]]
    assert not missing(source)
    train = open_pairs(f"coco-karpathy:{tmp_path}#train")
    assert train.read(0).image == entries[2][2].encode()
    with pytest.raises(ValueError, match="split = 'dev' is none of train, restval, val, test"):
        open_pairs(f"coco-karpathy:{tmp_path}#dev")


@pytest.mark.parametrize("folder", ["flickr30k-images", "flickr30k_images", "images", "."])
def test_flickr30k(tmp_path, folder):
    karpathy(
        tmp_path,
        "flickr30k",
        [("test", None, "1007129816.jpg", FIVE), ("train", None, "1000092795.jpg", FIVE)],
    )
    put(tmp_path / folder / "1007129816.jpg")
    source = open_pairs(f"flickr30k:{tmp_path}")
    assert source.keys == ["1007129816.jpg"] and captions(source) == [FIVE]
    assert not missing(source)


def test_the_token_file_of_flickr30k(tmp_path):
    lines = [
        f"{name}.jpg#{i}\t{FIVE[i]}" for name in ("1000092795", "1007129816") for i in range(5)
    ]
    put(tmp_path / "results_20130124.token", "\n".join([*lines, "no tab", "a.jpg#0\t "]) + "\n")
    put(tmp_path / "flickr30k-images" / "1007129816.jpg")
    put(tmp_path / "test.txt", "1007129816\n77.jpg\n")
    source = open_pairs(f"flickr30k-token:{tmp_path}")
    assert source.keys == ["1000092795.jpg", "1007129816.jpg"]
    assert captions(source) == [FIVE, FIVE]
    assert missing(source) == ["1000092795.jpg"]
    assert "results_20130124.token, line 11: is not NAME#NUMBER" in source.unusable[0]
    assert source.unusable[1:] == (
        "results_20130124.token, line 12: is not NAME#NUMBER, a tab and a caption",
    )
    test = open_pairs(f"flickr30k-token:{tmp_path}#test.txt")
    assert test.keys == ["1007129816.jpg"] and not missing(test)
    assert "test.txt: 77 has no caption in results_20130124.token" in test.unusable


def test_entries_of_no_use_are_named(tmp_path, caplog):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2}, 3, {"id": 4, "file_name": "b.jpg"}]
        + [{"id": 5, "file_name": "a.jpg"}],
        "annotations": [
            {"image_id": 1, "caption": "An a."},
            {"image_id": 9, "caption": "Of nothing."},
            {"image_id": 1, "caption": ""},
            {"image_id": [1], "caption": "Odd."},
        ],
    }
    put(tmp_path / "captions_val2017.json", content)
    source = open_pairs(f"coco2017:{tmp_path}")
    assert source.keys == ["a.jpg"] and captions(source) == [["An a."]]
    assert source.unusable == (
        "captions_val2017.json, images 1: has no name of a file",
        "captions_val2017.json, images 2: is no object",
        "captions_val2017.json, images 4: image a.jpg is there twice",
        "captions_val2017.json, annotations 1: belongs to no image",
        "captions_val2017.json, annotations 2: has no caption",
        "captions_val2017.json, annotations 3: belongs to no image",
        "image b.jpg has no caption",
    )
    assert f"7 entries are of no use: {source.unusable[0]}" in caplog.text


def test_wrong_specs_are_named(tmp_path):
    with pytest.raises(ValueError, match="'coco' is none of ") as error:
        open_pairs(f"coco:{tmp_path}")
    assert all(f" {layout}:ROOT" in str(error.value) for layout in LAYOUTS)
    with pytest.raises(ValueError, match="captions_val2017.json is missing.*image_text_evaluation"):
        open_pairs(f"coco2017:{tmp_path}")
    coco(tmp_path, 2017)
    with pytest.raises(ValueError, match="split = 'test': coco2017 is the whole validation set"):
        open_pairs(f"coco2017:{tmp_path}#test")
    put(tmp_path / "dataset_coco.json", {"images": []})
    with pytest.raises(ValueError, match="coco-karpathy has no image with a caption"):
        open_pairs(f"coco-karpathy:{tmp_path}")
    put(tmp_path / "dataset_coco.json", {"pictures": []})
    with pytest.raises(ValueError, match="has no list 'images'"):
        open_pairs(f"coco-karpathy:{tmp_path}")


def test_they_are_packed_and_trained_on_as_other_pairs(tmp_path, tokenizer, capsys):
    """The missing picture is a failure that is counted, and a row of weight 0."""
    names = coco(tmp_path / "coco", 2017)
    spec, out = f"coco2017:{tmp_path}/coco", str(tmp_path / "out")
    options = ["--size", "32", "--patch", "8", "--workers", "0", "--columns", FIRST_FIVE]
    assert main(["pack-pairs", spec, "--out", out, *options]) == 0
    assert "pairs: 2 ok, 0 skipped, 1 failed\n  failed: dead 1" in capsys.readouterr().out
    records = RecordSet(tmp_path / "out" / "image")
    assert records.keys == names[:2]
    assert list(records[1].texts.values()) == FIVE
    source, text = open_pairs(spec), PairTextConfig(token_len=8, output_token_len=8)
    with make_pair_loader(
        source, tokenizer, text, batch_size=3, budget=16, patch=8, image_size=32
    ) as loader:
        batch = next(loader)
        assert loader.unreadable_kinds == {"dead": 1}
    assert batch["weight"][batch["index"] == 2] == 0 and batch["weight"].sum() == 2


def test_a_set_is_packed_anew_when_a_missing_picture_arrives_but_not_when_all_moves(tmp_path):
    names = coco(tmp_path / "a", 2017)
    stamp = open_pairs(f"coco2017:{tmp_path}/a").stamp
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert open_pairs(f"coco2017:{tmp_path}/b").stamp == stamp
    put(tmp_path / "b" / "val2017" / names[2], picture_bytes(2))
    assert open_pairs(f"coco2017:{tmp_path}/b").stamp != stamp
