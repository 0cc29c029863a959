"""Zero-shot classification and retrieval from pairs of any kind, by a model that sees colours."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from codecvit.data.pack import main as pack
from codecvit.data.pairs import open_pairs
from codecvit.data.pairs.pack import main as pack_pairs
from codecvit.data.records import RecordSet
from codecvit.data.tokenizers import open_tokenizer
from codecvit.trainers.contrastive_config import RetrievalConfig, ZeroShotConfig
from codecvit.trainers.pair_evaluation import PairModel, Retrieval, ZeroShot

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "grey": (90, 90, 90)}
SMALL = ["--size", "28", "--patch", "14", "--workers", "0"]


class Colours(PairModel):
    """An image is its mean colour, a text the colour that it begins with; no image is NaN."""

    def __init__(self, tokenizer):
        self._tokenizer, self._image, self._image_size = tokenizer, None, 28
        self._config = SimpleNamespace(vision=SimpleNamespace(patch=14))

    def texts(self, texts):
        return np.array([COLOURS.get(text.split("_")[0], (1, 1, 1)) for text in texts], np.float32)

    def _apply(self, function, batch):
        assert batch["patches"].shape[1:] == (4, 14 * 14 * 3)
        assert (batch["positions"].sum(2)[batch["length"] == 4] == [0, 1, 1, 2]).all()  # h + w
        pixels = batch["patches"].reshape(len(batch["patches"]), -1, 3).astype(np.float32).mean(1)
        return np.where(pixels.any(1, keepdims=True), pixels, np.nan)


@pytest.fixture
def model(pairs_folder):
    return Colours(open_tokenizer(pairs_folder / "vocab.txt"))


def paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 40), COLOURS[colour]).save(path)


def write_table(folder, rows):
    """A table of (colour, column values); the pictures lie beside it."""
    lines = []
    for number, (colour, values) in enumerate(rows):
        paint(folder / f"{number}.png", colour)
        lines.append(json.dumps({"image": f"{number}.png", **values}))
    (folder / "table.jsonl").write_text("\n".join(lines))
    return f"table:{folder}/table.jsonl"


def zero_shot(folder, pairs, classes, **options):
    (folder / "names.txt").write_text("\n".join(classes))
    (folder / "templates.txt").write_text("{}\n")
    settings = {"classes": str(folder / "names.txt"), "templates": str(folder / "templates.txt")}
    return ZeroShot(ZeroShotConfig(pairs=pairs, **settings, **{"batch_size": 4, **options}))


def test_classes_that_share_a_name_are_told_apart_or_refused(model, tmp_path):
    """Two classes are called crane: only what names one of them counts."""
    classes = ["n00000001 red, crane", "n00000002 green, crane", "n00000003 blue, Tinca tinca"]
    ids = {"red": "n00000001", "green": "n00000002", "blue": "n00000003"}
    right = [
        [(colour, {"label": name}) for colour, name in ids.items()],
        [(colour, {"label": number}) for number, colour in enumerate(ids)],
        [("red", {"label": "red"}), ("blue", {"label": "Tinca tinca"})],
    ]
    for number, rows in enumerate(right):
        spec = write_table(tmp_path / str(number), rows)
        assert zero_shot(tmp_path, spec, classes)(model)["top1"] == 1, rows
    wrong = [(colour, {"label": right[0][(n + 1) % 3][1]["label"]}) for n, colour in enumerate(ids)]
    spec = write_table(tmp_path / "wrong", wrong)
    assert zero_shot(tmp_path, spec, classes)(model)["top1"] == 0
    spec = write_table(
        tmp_path / "twins", [("red", {"label": "red"}), ("green", {"label": "crane"})]
    )
    with pytest.raises(ValueError, match=r"twins.*'crane' may be any of the classes 0 .*WordNet"):
        zero_shot(tmp_path, spec, classes)
    spec = write_table(tmp_path / "other", [("red", {"label": "a dog"})])
    with pytest.raises(ValueError, match="'a dog' is none of the 3 .*columns = text_0=COLUMN"):
        zero_shot(tmp_path, spec, classes)


def test_a_pair_without_a_class_is_not_asked(model, tmp_path):
    rows = [("red", {"label": "red"}), ("blue", {"label": " "}), ("blue", {"label": "green"})]
    found = zero_shot(tmp_path, write_table(tmp_path, rows), ["red", "green", "blue"])(model)
    assert (found["top1"], found["count"], found["unreadable"]) == (1 / 2, 2, 0)
    spec = write_table(tmp_path, [("red", {})] * 2)
    with pytest.raises(ValueError, match="no pair has a text, the last one because: .*no text"):
        zero_shot(tmp_path, spec, ["red", "green"])


def test_aliases_and_the_form_of_prompts_are_asked_for(model, tmp_path):
    """The model knows no "Red!"; classes of the same names are one."""
    spec = write_table(tmp_path, [("red", {"label": 0}), ("green", {"label": 1})])
    assert zero_shot(tmp_path, spec, ["Red!", "Green!"])(model)["top1"] == 0
    assert zero_shot(tmp_path, spec, ["Red!", "Green!"], canonical=True)(model)["top1"] == 1
    names = ["red, green", "green, red"]
    assert zero_shot(tmp_path, spec, names)(model)["top1"] == 0  # both mean the same
    assert zero_shot(tmp_path, spec, names, aliases=False)(model)["top1"] == 1
    with pytest.raises(ValueError, match="names 2 classes, expected 1000"):
        zero_shot(tmp_path, spec, names, dataset="imagenet")


def damage(records, name):
    """Spoils the record whose key holds a name."""
    key = next(key for key in records.keys if name in key).encode()
    part = next(records.path.glob("*.array_record"))
    data = bytearray(part.read_bytes())
    data[data.index(key) + len(key)] ^= 0xFF
    part.write_bytes(data)


def test_a_labelled_record_set(model, tmp_path):
    """A record that is damaged, with its label, counts as wrong."""
    for name in ("red", "green", "blue"):
        for i in range(2):
            shown = "red" if (name, i) == ("blue", 1) else name
            paint(tmp_path / "images" / name / f"{name}{i}.png", shown)
    arguments = [str(tmp_path / "images"), "--out", str(tmp_path / "set"), "--labels", "folders"]
    assert pack([*arguments, *SMALL]) == 0
    spec = f"records:{tmp_path}/set/image"
    evaluation = zero_shot(tmp_path, spec, ["red", "green", "blue"])
    expected = {"top1": pytest.approx(5 / 6), "top5": 1, "count": 6, "unreadable": 0}
    assert evaluation(model) == expected
    damage(RecordSet(tmp_path / "set" / "image"), "green0")
    found = zero_shot(tmp_path, spec, ["red", "green", "blue"])(model)
    assert found["top1"] == pytest.approx(4 / 6) and found["top5"] == pytest.approx(5 / 6)
    assert (found["count"], found["unreadable"]) == (6, 1)


CAPTIONS = {
    "red": ["red_1", "red_2", "grey_0"],
    "green": ["green_1"],
    "blue": ["blue_1", "blue_2"],
    "grey": ["grey_1"],
}


@pytest.fixture
def coco(tmp_path):
    """Blue is not there. Grey's own caption ties with a wrong one that says the same."""
    names = [f"{name}.png" for name in CAPTIONS]
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"image_id": i, "caption": text}
            for i, texts in enumerate(CAPTIONS.values())
            for text in texts
        ],
    }
    (tmp_path / "captions_val2017.json").write_text(json.dumps(content))
    for name in ("red", "green", "grey"):
        paint(tmp_path / "val2017" / f"{name}.png", name)
    return tmp_path


@pytest.mark.parametrize("damaged", [False, True])
def test_an_image_that_is_missing_or_damaged_counts_as_wrong(model, coco, damaged):
    if damaged:
        (coco / "val2017" / "blue.png").write_bytes(b"damaged")
    found = Retrieval(RetrievalConfig(pairs=f"coco2017:{coco}", batch_size=3))(model)
    assert (found["images"], found["captions"], found["unreadable"]) == (4, 7, 1)
    assert found["image_to_text_r1"] == 2 / 4
    assert found["text_to_image_r1"] == 4 / 7
    assert found["text_to_image_r5"] == 5 / 7 and found["image_to_text_r5"] == 3 / 4


def test_a_packed_set_retrieves_as_its_source_does_and_a_damaged_record_counts(model, coco):
    paint(coco / "val2017" / "blue.png", "blue")
    spec = f"coco2017:{coco}"
    expected = Retrieval(RetrievalConfig(pairs=spec, batch_size=3))(model)
    assert expected["unreadable"] == 0 and expected["image_to_text_r1"] == 3 / 4
    assert pack_pairs([spec, "--out", str(coco / "set"), *SMALL]) == 0
    packed = f"records:{coco}/set/image"
    assert Retrieval(RetrievalConfig(pairs=packed, batch_size=3))(model) == expected
    damage(RecordSet(coco / "set" / "image"), "green")
    found = Retrieval(RetrievalConfig(pairs=packed, batch_size=3))(model)
    assert (found["images"], found["captions"], found["unreadable"]) == (4, 7, 1)
    assert found["image_to_text_r1"] == 2 / 4


def test_a_pair_without_a_caption_takes_no_part(model, tmp_path):
    rows = [
        ("red", {"captions": ["red_1"]}),
        ("green", {"captions": []}),
        ("blue", {"captions": ["green_1"]}),
    ]
    spec = write_table(tmp_path, rows)
    found = Retrieval(RetrievalConfig(pairs=spec, batch_size=4))(model)
    assert (found["images"], found["captions"], found["unreadable"]) == (2, 2, 0)
    # Blue does not find a caption of green, but nor is a green image in the way.
    assert found["image_to_text_r1"] == 1 / 2 and found["image_to_text_r5"] == 1


def test_features_of_images_do_not_depend_on_the_batch(model, tmp_path):
    rng = np.random.default_rng(0)
    spec = write_table(tmp_path, [("red", {"caption": "red"})] * 6)
    for i in (0, 2, 3, 4, 5):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").unlink()
    one, four = (model.images(open_pairs(spec), batch_size) for batch_size in (1, 4))
    np.testing.assert_array_equal(one.rows_ND, four.rows_ND)
    np.testing.assert_array_equal(four.readable_N, [1, 0, 1, 1, 1, 1])
    assert not four.rows_ND[1].any() and four.rows_ND[0].any()
