"""Small made copies of COCO and Flickr30k, in the layouts of their authors."""

import pytest
from layouts import put

from codecvit.evaluators.captions import READERS, read_captions

FIVE = [f"A sentence, number {i}." for i in range(5)]


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
    for name in names[:2]:
        put(root / images.format(split=f"val{year}", name=name))
    return names


@pytest.mark.parametrize("images", ["{split}/{name}", "images/{split}/{name}", "images/{name}"])
@pytest.mark.parametrize("year", [2014, 2017])
def test_coco(tmp_path, year, images):
    names = coco(tmp_path, year, images)
    found = read_captions(f"coco{year}", tmp_path)
    assert found.keys == tuple(names)
    assert found.captions == (
        ("A woman stands .", "A room with chairs."),
        (*FIVE, "One more."),
        ("A bed.",),
    )
    place = images.format(split=f"val{year}", name=names[1])
    assert found.paths[1] == tmp_path / place and found.paths[1].is_file()
    assert found.missing == (names[2],) and found.unusable == ()
    assert found.paths[2] == tmp_path / f"val{year}" / names[2]
    assert read_captions(f"coco{year}", tmp_path, per_image=5).captions[1] == tuple(FIVE)


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
        put(tmp_path / folder / name)
    found = read_captions("coco-karpathy", tmp_path)
    assert found.keys == (entries[0][2], entries[3][2])
    assert found.captions == (tuple(FIVE), ("A young girl.",))
    assert all(path.is_file() for path in found.paths) and not found.missing
    train = read_captions("coco-karpathy", tmp_path, split="train")
    assert train.paths == (tmp_path / "train2014" / entries[2][2],)
    with pytest.raises(ValueError, match="split = 'dev' is none of train, restval, val, test"):
        read_captions("coco-karpathy", tmp_path, split="dev")


@pytest.mark.parametrize("folder", ["flickr30k-images", "flickr30k_images", "images", "."])
def test_flickr30k(tmp_path, folder):
    karpathy(
        tmp_path,
        "flickr30k",
        [("test", None, "1007129816.jpg", FIVE), ("train", None, "1000092795.jpg", FIVE)],
    )
    put(tmp_path / folder / "1007129816.jpg")
    found = read_captions("flickr30k", tmp_path)
    assert found.keys == ("1007129816.jpg",) and found.captions == (tuple(FIVE),)
    assert found.paths[0].is_file() and not found.missing


def test_the_token_file_of_flickr30k(tmp_path):
    lines = [
        f"{name}.jpg#{i}\t{FIVE[i]}" for name in ("1000092795", "1007129816") for i in range(5)
    ]
    put(tmp_path / "results_20130124.token", "\n".join([*lines, "no tab", "a.jpg#0\t "]) + "\n")
    put(tmp_path / "flickr30k-images" / "1007129816.jpg")
    put(tmp_path / "test.txt", "1007129816\n77.jpg\n")
    found = read_captions("flickr30k-token", tmp_path)
    assert found.keys == ("1000092795.jpg", "1007129816.jpg")
    assert found.captions == (tuple(FIVE),) * 2
    assert found.missing == ("1000092795.jpg",)
    assert "results_20130124.token, line 11: is not NAME#NUMBER" in found.unusable[0]
    assert found.unusable[1:] == (
        "results_20130124.token, line 12: is not NAME#NUMBER, a tab and a caption",
    )
    test = read_captions("flickr30k-token", tmp_path, split="test.txt")
    assert test.keys == ("1007129816.jpg",) and not test.missing
    assert "test.txt: 77 has no caption in results_20130124.token" in test.unusable


def test_entries_of_no_use_are_named(tmp_path):
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
    found = read_captions("coco2017", tmp_path)
    assert found.keys == ("a.jpg",) and found.captions == (("An a.",),)
    assert found.unusable == (
        "captions_val2017.json, images 1: has no name of a file",
        "captions_val2017.json, images 2: is no object",
        "captions_val2017.json, images 4: image a.jpg is there twice",
        "captions_val2017.json, annotations 1: belongs to no image",
        "captions_val2017.json, annotations 2: has no caption",
        "captions_val2017.json, annotations 3: belongs to no image",
        "image b.jpg has no caption",
    )


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match=f"'coco' is none of {', '.join(READERS)}"):
        read_captions("coco", tmp_path)
    with pytest.raises(ValueError, match="captions_val2017.json is missing.*image_text_evaluation"):
        read_captions("coco2017", tmp_path)
    with pytest.raises(ValueError, match="per_image = 0"):
        read_captions("coco2017", tmp_path, per_image=0)
    coco(tmp_path, 2017)
    with pytest.raises(ValueError, match="split = 'test': coco2017 is the whole validation set"):
        read_captions("coco2017", tmp_path, split="test")
    put(tmp_path / "dataset_coco.json", {"images": []})
    with pytest.raises(ValueError, match="coco-karpathy has no image with a caption"):
        read_captions("coco-karpathy", tmp_path)
    put(tmp_path / "dataset_coco.json", {"pictures": []})
    with pytest.raises(ValueError, match="has no list 'images'"):
        read_captions("coco-karpathy", tmp_path)
