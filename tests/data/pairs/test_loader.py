"""Batches of pairs: contents, draws, resume, processes, unusable pairs."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from codecvit.data.augment import AugmentConfig
from codecvit.data.pairs import PairTextConfig, iterate_pairs, make_pair_loader, open_pairs
from codecvit.data.pairs.text import choose_texts, split_sentences

TEXT = PairTextConfig(token_len=10, output_token_len=12)
OPTIONS = {"batch_size": 4, "budget": 16, "patch": 8, "image_size": 32, "seed": 3}
COLOURS = AugmentConfig(
    crop_area=(0.4, 1.0),
    crop_aspect=(0.75, 4 / 3),
    flip=0.5,
    jitter=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grey=0.2,
)


def take(steps, source, tokenizer, text=TEXT, **options):
    with make_pair_loader(source, tokenizer, text, **{**OPTIONS, **options}) as loader:
        return [next(loader) for _ in range(steps)]


def rows(batches):
    """Rows by place: index with everything that was drawn for it, in order."""
    flat = [{k: v[i] for k, v in b.items()} for b in batches for i in range(len(b["index"]))]
    return sorted(flat, key=lambda row: (row["index"], row["text_1"].tobytes()))


def same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


@pytest.fixture
def source(write_table):
    return open_pairs(f"table:{write_table()}")


def test_a_batch_holds_pictures_and_texts(source, tokenizer):
    (batch,) = take(1, source, tokenizer)
    types = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert types == {
        "patches": ("uint8", (4, 16, 192)),
        "positions": ("int32", (4, 16, 3)),
        "length": ("int32", (4,)),
        "weight": ("float32", (4,)),
        "index": ("int64", (4,)),
        "text_0": ("int32", (4, 10)),
        "text_1": ("int32", (4, 10)),
        "target": ("int32", (4, 12)),
        "target_mask": ("bool", (4, 12)),
    }
    for row, index in enumerate(batch["index"].tolist()):
        assert batch["length"][row] == 16 and batch["weight"][row] == 1
        # Pixel values tell which picture it is: nothing was shifted between columns.
        assert (batch["patches"][row].reshape(16, -1, 3) == (index * 5, 100, 200)).all()
        assert tokenizer.decode(batch["text_0"][row][1:]) == f"picture {index}"
        said = tokenizer.decode(batch["text_1"][row][1:])
        assert said in {f"{word} {index}" for word in ("one", "two", "three")}
        assert tokenizer.decode(batch["target"][row]).startswith(f"one {index}. two {index}!")
        assert batch["text_0"][row][-1] == batch["text_1"][row][-1] == tokenizer.ids.cls


def test_a_sentence_is_drawn_anew_and_each_comes_up(source, tokenizer):
    batches = take(60, source, tokenizer, batch_size=12)
    first = [tokenizer.decode(row["text_1"][1:]).split()[0] for b in batches for row in rows([b])]
    counts = np.array([first.count(word) for word in ("one", "two", "three")])
    assert counts.sum() == 720 and (np.abs(counts - 240) < 4 * np.sqrt(720 * 2 / 9)).all()


@pytest.mark.parametrize(("choice", "expected"), [("first", "a b"), ("full", "a b. c! d")])
def test_choices_without_a_draw(choice, expected):
    chosen = choose_texts(
        {"text_0": "w", "text_1": "a b. c! d"},
        PairTextConfig(choice=choice),
        np.random.default_rng(0),
    )
    assert chosen == ("w", expected, "a b. c! d", False)


def test_sentences_without_ends_are_whole():
    assert split_sentences("A b! C d. ") == ["A b", "C d"]
    assert split_sentences("no end") == ["no end"]
    assert split_sentences("...") == ["..."]


@pytest.mark.parametrize("lacking", ["caption", "re_caption"])
def test_a_missing_caption_is_the_other_one_and_is_counted(write_table, tokenizer, lacking):
    source = open_pairs(f"table:{write_table(4, rows={2: {lacking: '  '}})}")
    with make_pair_loader(source, tokenizer, TEXT, **OPTIONS) as loader:
        row = rows([next(loader)])[2]
        assert loader.lacked == 1 and not loader.unreadable
        (again,) = {next(loader)["weight"].sum()}
        assert again == 4 and loader.lacked == 2
    assert row["weight"] == 1
    target = tokenizer.decode(row["target"])
    if lacking == "re_caption":
        np.testing.assert_array_equal(row["text_0"], row["text_1"])
        assert target == "picture 2"
    else:
        assert tokenizer.decode(row["text_0"][1:]).startswith(("one 2", "two 2", "three 2"))


def test_resume_is_exact(source, tokenizer):
    options = {"augment": COLOURS, "mask_ratio": 0.5}
    whole = take(6, source, tokenizer, **options)
    same(whole[4:], take(2, source, tokenizer, start_index=16, **options))
    with make_pair_loader(source, tokenizer, TEXT, **OPTIONS, **options) as loader:
        for _ in range(4):
            next(loader)
        assert loader.get_state() == 16 and loader.taken() == [16]
        loader.set_state(8)
        same([next(loader)], whole[2:3])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_two_processes_draw_what_one_draws(source, tokenizer, workers):
    """The same examples with the same crops, colours, masks and sentences, for every global step;
    also when two processes go on where one stopped."""
    options = {"augment": COLOURS, "mask_ratio": 0.25, "worker_count": workers}
    one = take(6, source, tokenizer, **options)
    two = [take(6, source, tokenizer, process_index=i, process_count=2, **options) for i in (0, 1)]
    for step in range(6):
        same(rows([one[step]]), rows([two[0][step], two[1][step]]))
    later = [
        take(3, source, tokenizer, process_index=i, process_count=2, start_index=12, **options)
        for i in (0, 1)
    ]
    for step in range(3):
        same(rows([one[step + 3]]), rows([later[0][step], later[1][step]]))


def test_sentences_and_masks_do_not_depend_on_the_augmentation(source, tokenizer):
    plain = take(3, source, tokenizer, mask_ratio=0.5)
    changed = take(3, source, tokenizer, mask_ratio=0.5, augment=COLOURS)
    for one, other in zip(plain, changed, strict=True):
        np.testing.assert_array_equal(one["text_1"], other["text_1"])
        np.testing.assert_array_equal(one["positions"], other["positions"])
        assert (one["patches"] != other["patches"]).any()


def test_a_mask_leaves_a_uniform_subset_of_the_patches(source, tokenizer):
    whole = rows(take(1, source, tokenizer, batch_size=12))
    batches = take(40, source, tokenizer, batch_size=12, budget=4, mask_ratio=0.75)
    counts = np.zeros((4, 4), int)
    for batch in batches:
        assert batch["patches"].shape[1] == 4 and (batch["length"] == 4).all()
        for row in rows([batch]):
            _, h, w = row["positions"].T
            assert (np.diff(h * 4 + w) > 0).all()  # in order, none twice
            np.testing.assert_array_equal(row["patches"], whole[row["index"]]["patches"][h * 4 + w])
            counts[h, w] += 1
    assert counts.sum() == 480 * 4
    assert (np.abs(counts - 120) < 4 * np.sqrt(120)).all()


def test_every_pair_once_and_nothing_drawn(write_table, tokenizer):
    """As a loader's rows where nothing is drawn; the last batch is filled up."""
    source = open_pairs(f"table:{write_table(6, rows={1: {'path': 'none.png'}})}")
    options = {"batch_size": 4, "budget": 16, "patch": 8, "image_size": 32}
    batches = list(iterate_pairs(source, tokenizer, TEXT, **options))
    assert np.concatenate([b["index"] for b in batches]).tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert np.concatenate([b["weight"] for b in batches]).tolist() == [1, 0, 1, 1, 1, 1, 0, 0]
    again = next(iterate_pairs(source, tokenizer, TEXT, **options))
    same(batches[:1], [again])
    text = PairTextConfig(token_len=10, output_token_len=12, choice="first")
    (drawn,) = take(1, source, tokenizer, text, shuffle=False)
    order = np.argsort(drawn["index"])
    for key, values in drawn.items():
        np.testing.assert_array_equal(values[order], batches[0][key], err_msg=key)


def test_sources_are_mixed_by_weight(write_table, tokenizer):
    sources = [
        open_pairs(f"table:{write_table(8, 'a.jsonl')}"),
        open_pairs(f"table:{write_table(4, 'b.jsonl')}"),
    ]
    with make_pair_loader(sources, tokenizer, TEXT, **OPTIONS, weights=[1, 3]) as loader:
        index = np.concatenate([next(loader)["index"] for _ in range(10)])
        assert loader.taken() == [10, 30]
    assert (index < 8).sum() == 10 and index.max() == 11


def test_an_unusable_pair_is_a_row_of_weight_0_and_logged_once(write_table, tokenizer, caplog):
    table = write_table(8, rows={1: {"path": "images/none.png"}, 5: {"caption": 7 * [" "]}})
    (table.parent / "images" / "003.png").write_bytes(b"no picture")
    source = open_pairs(f"table:{table}")
    caplog.set_level(logging.WARNING)
    with make_pair_loader(source, tokenizer, TEXT, **OPTIONS) as loader:
        batches = [next(loader) for _ in range(6)]
        assert loader.unreadable == {1, 3}
        assert loader.unreadable_kinds == {"dead": 1, "undecodable": 1}
    for row in rows(batches):
        assert row["weight"] == (row["index"] not in (1, 3))
        if row["weight"] == 0:
            assert row["length"] == 1 and not row["patches"].any()
            assert not row["target_mask"].any() and (row["text_0"] == 0).all()
    assert len(caplog.records) == 2
    logged = " ".join(record.getMessage() for record in caplog.records)
    assert "pair-001: dead" in logged and "pair-003: undecodable" in logged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 15}, r"budget = 15 is below .* \(16 patches"),
        ({"image_size": 30}, "image_size = 30 .* multiple of the patch 8"),
        ({"image_size": 0}, "image_size = 0"),
        ({"patch": 0}, "give patch"),
        ({"mask_ratio": 1.0}, "mask_ratio = 1.0"),
        ({"batch_size": 3, "process_count": 2}, "batch_size = 3"),
        ({"weights": [1, 1]}, "one number for each of the 1"),
    ],
)
def test_options_that_cannot_work_are_refused(source, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        make_pair_loader(source, tokenizer, TEXT, **{**OPTIONS, **options})


@pytest.mark.parametrize(
    ("field", "value"), [("token_len", 3), ("output_token_len", 1), ("choice", "all")]
)
def test_text_options_that_cannot_work_are_refused(field, value):
    with pytest.raises(ValueError, match=f"text.{field} = "):
        PairTextConfig(**{field: value})
