"""Demo pairs: captions are true of their pictures, reproducible, and covered by the vocabulary."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from codecvit.__main__ import main
from codecvit.data import demo, demo_scene
from codecvit.data.demo_pairs import (
    COLOURS,
    DIGITS,
    SCENES,
    PairPlan,
    clip_row,
    draw_pair,
    vocabulary,
    write_demo_pairs,
)
from codecvit.data.pairs import PairTextConfig, make_pair_loader, open_pairs
from codecvit.data.pairs.text import split_sentences
from codecvit.data.tokenizers import open_tokenizer

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    assert write_demo_pairs(folder, 80, 20)
    return folder


def rows(folder, split="train"):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def test_captions_are_true_of_the_picture(tmp_path):
    """Colour, size and place are read back from the pixels."""
    for number in range(60):
        pixels, row = draw_pair(PairPlan("train", number, 0, tmp_path))
        colour = np.array(COLOURS[row["colour"]])
        inside = np.abs(pixels.astype(int) - colour).max(axis=-1) < 30
        ink = np.argwhere(inside)
        y, x = (ink.min(axis=0) + ink.max(axis=0)) / 2 / demo_scene.SIDE
        places = {0: "top", 1: "", 2: "bottom"}, {0: "left", 1: "", 2: "right"}
        found = [
            names[int(np.digitize(at, [0.4375, 0.5625]))]
            for names, at in zip(places, (y, x), strict=True)
        ]
        assert (" ".join(filter(None, found)) or "middle") == row["place"], number
        height = np.ptp(np.argwhere(inside.any(axis=1))) + 1
        assert (height > 58) == (row["size"] == "big"), number
        assert row["re_caption"].startswith(
            f"A {row['size']} {row['colour']} {row['digit']} is at the {row['place']}. "
            f"The background shows {row['scene']}."
        )
        assert row["digit"] == DIGITS[row["label"]] == row["class_name"] == DIGITS[number % 10]
        assert row["digit"] in row["caption"]
        assert len(split_sentences(row["re_caption"])) in (2, 3)


def test_the_photograph_is_the_one_that_is_named(tmp_path, monkeypatch):
    digits, classes, photographs = demo_scene.bundled_images()
    plain = [np.full_like(photographs[0], 255 * n) for n in range(2)]
    monkeypatch.setattr(demo_scene, "bundled_images", lambda: (digits, classes, plain))
    for number in range(30):
        pixels, row = draw_pair(PairPlan("test", number, 0, tmp_path))
        assert SCENES[int(np.median(pixels) > 40)] == row["scene"]
        plan = demo.ClipPlan("test", number, 0, tmp_path)
        clip = clip_row(plan)
        frames, _ = demo.render(plan)
        assert SCENES[int(np.median(frames) > 40)] == clip["scene"]
        assert clip["moving"].endswith(plan.motion) and clip["digit"] == DIGITS[plan.digit]


def test_attributes_are_independent_and_captions_many(made):
    train = rows(made)
    assert len({row["re_caption"] for row in train}) > 70
    for name, least in (("colour", 5), ("size", 2), ("place", 9), ("scene", 2), ("digit", 10)):
        assert len({row[name] for row in train}) == least
    assert not {row["key"] for row in train} & {row["key"] for row in rows(made, "test")}


def test_the_vocabulary_covers_all_captions(made):
    tokenizer = open_tokenizer(made / "vocab.txt")
    assert tokenizer.vocab_size == len(set(vocabulary())) == len(vocabulary())
    unknown = vocabulary().index("[UNK]")
    for row in rows(made) + rows(made, "test"):
        for text in (row["caption"], row["re_caption"]):
            tokens = tokenizer.tokens(text)
            assert unknown not in tokens
            # Every word is a token of its own.
            assert len(tokens) == len(re.findall(r"\w+|[.,]", text))
    assert unknown not in tokenizer.tokens("a photo of a zebra!")  # of letters


def test_it_is_the_same_every_time(made, tmp_path):
    assert not write_demo_pairs(made, 80, 20)
    assert write_demo_pairs(tmp_path, 80, 20, workers=1)
    for path in sorted(made.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(made)).read_bytes(), path
    with pytest.raises(ValueError, match="choose another --out"):
        write_demo_pairs(made, 81, 20)
    with pytest.raises(ValueError, match="test_pairs = 0"):
        write_demo_pairs(tmp_path / "x", 1, 0)


def test_the_whole_line(made, tmp_path):
    """demo-data --pairs, pack-pairs, loader."""
    options = ["--size", "56", "--workers", "0", "--out", str(tmp_path)]
    assert main(["pack-pairs", f"table:{made}/test.jsonl", *options]) == 0
    tokenizer = open_tokenizer(made / "vocab.txt")
    text = PairTextConfig(token_len=16, output_token_len=32)
    source = open_pairs(f"records:{tmp_path}/image")
    with make_pair_loader(source, tokenizer, text, batch_size=20, budget=16) as loader:
        batch = next(loader)
    assert batch["weight"].all()
    expected = {row["key"]: row for row in rows(made, "test")}
    for row, index in enumerate(batch["index"]):
        said = tokenizer.decode(batch["target"][row])
        assert said == expected[source.keys[index]]["re_caption"].lower()


def test_captions_of_clips(tmp_path, capsys):
    options = ["--out", str(tmp_path), "--workers", "0"]
    assert main(["demo-data", *options, "--train-clips", "2", "--test-clips", "1"]) == 0
    counts = ["--train-pairs", "2", "--test-pairs", "1"]
    assert main(["demo-data", "--pairs", *options, *counts]) == 0
    assert main(["demo-data", "--pairs", *options, *counts]) == 0
    assert "found 2 training" in capsys.readouterr().out
    source = open_pairs(f"table:{tmp_path}/clips_train.jsonl")
    assert len(source) == 2
    for index in range(2):
        item = source.video(index)
        assert (tmp_path / item.source).is_file()
        assert source.read(index, media=False).texts["text_1"].startswith("A zero is")


def test_test_pictures_share_nothing_with_training(tmp_path, monkeypatch):
    """Digits and photographs of the two splits are disjoint parts: see tests of the clips."""
    seen = {"train": set(), "test": set()}
    original = demo_scene.choose_digit

    def choose(split, digit, rng):
        ink = original(split, digit, rng)
        seen[split].add(ink.tobytes())
        return ink

    monkeypatch.setattr(demo_scene, "choose_digit", choose)
    for split in seen:
        for number in range(40):
            draw_pair(PairPlan(split, number, 0, tmp_path))
    assert len(seen["train"]) > 30 and not seen["train"] & seen["test"]
