"""Rows of every kind as examples; what fails is counted and listed, and nothing takes its place."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from codecvit.llava.data.assets import AssetMismatch
from codecvit.llava.data.dataset import Collator, LlavaDataset, make_loader
from codecvit.llava.data.examples import IGNORED, Example
from codecvit.llava.data.failures import Failure, FailureLog, TooManyFailures
from codecvit.llava.data.mixture import load_mixture
from codecvit.llava.data.row_visuals import KINDS
from codecvit.llava.data.sampler import LengthGroupedBatches

from .made import (
    OPTIONS,
    moving,
    pack_rows,
    read_rows,
    turns,
    video_row,
    write_image,
    write_rows,
    write_video,
)

LOSSLESS = dataclasses.replace(OPTIONS, lossless=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data tree: two videos, packed without loss, two images, and plain rows."""
    folder = tmp_path_factory.mktemp("data")
    for name, seed in (("a.mp4", 0), ("b.mp4", 5)):
        write_video(folder / name, moving(seed))
    pack_rows(folder, [video_row("a.mp4", "a"), video_row("b.mp4", "b")], "--lossless")
    write_image(folder / "pics" / "one.png", 1, 16, 24)
    write_image(folder / "pics" / "two.png", 2, 20, 12)
    rows = [
        {"id": "i", "image": "one.png", "conversations": turns("<image>\nWhat?", "A picture.")},
        {
            "id": "ii",
            "image": ["one.png", "two.png"],
            "conversations": turns("<image><image>Which?", "Both."),
        },
        {"id": "t", "conversations": turns("Why?", "So.")},
    ]
    write_rows(folder / "pics.jsonl", rows)
    write_rows(folder / "videos.jsonl", [video_row("a.mp4", "a"), video_row("b.mp4", "b")])
    return folder


RECIPE = """
- json_path: packed/train.jsonl
- json_path: pics.jsonl
  image_folder: pics
- json_path: videos.jsonl
"""


@pytest.fixture
def tree(made, tmp_path):
    """A copy of it that a test may damage."""
    return shutil.copytree(made, tmp_path / "tree")


@pytest.fixture
def opened(tree, tokenizer, make_config):
    """opened(recipe, fields): the data set of a recipe in the tree."""

    def make(recipe=RECIPE, max_length=400, timestamps=True, assets=LOSSLESS, **fields):
        (tree / "mix.yaml").write_text(recipe)
        config = make_config(template="chatml", timestamps=timestamps, **fields)
        mixture = load_mixture(str(tree / "mix.yaml"))
        return LlavaDataset(mixture, tokenizer, config, max_length, assets=assets)

    return make


def assert_same(a, b):
    np.testing.assert_array_equal(a.input_ids, b.input_ids)
    np.testing.assert_array_equal(a.labels, b.labels)
    for x, y in zip(a.visuals, b.visuals, strict=True):
        np.testing.assert_array_equal(x.patches, y.patches)
        np.testing.assert_array_equal(x.positions, y.positions)


def test_all_kinds_of_rows(opened):
    data = opened()
    examples = [data[i] for i in range(len(data))]
    assert all(isinstance(example, Example) for example in examples), examples
    kinds = [KINDS[kind] for kind in data.kinds]
    assert kinds == ["video", "video", "image", "images", "text", "video", "video"]
    assert [[v.grid for v in e.visuals] for e in examples] == [
        *([[(4, 4)]] * 2),
        [(4, 6)],
        [(4, 6), (5, 3)],
        [],
        *([[(4, 4)]] * 2),
    ]
    assert {v.patch for e in examples for v in e.visuals} == {4}  # the encoder's


def test_a_video_packed_on_the_fly_is_the_example_of_its_lossless_pack(opened):
    data = opened()
    for packed, plain in ((0, 5), (1, 6)):
        assert_same(data[packed], data[plain])
    assert not np.array_equal(data[0].visuals[0].patches, data[1].visuals[0].patches)


def test_lengths_are_near_the_true_ones(opened):
    data = opened(RECIPE.replace("videos", "packed/train"), timestamps=False)
    true = np.array([len(data[i]) for i in range(len(data))])
    # The byte tokenizer makes about four tokens where usual ones make one.
    visual = np.array([(data[i].input_ids < 0).sum() for i in range(len(data))])
    text = (true - visual) / 4
    np.testing.assert_array_less(np.abs(data.lengths - visual - text)[[0, 1, 4, 5, 6]], 30)
    assert data.length(0) == data.lengths[0] >= 48
    square = opened(RECIPE.replace("videos", "packed/train"), image_size=32)
    assert square.lengths[3] - square.lengths[4] >= 2 * 64


def test_stated_image_sizes_count(opened, tree):
    rows = read_rows(tree / "pics.jsonl")
    rows[0] |= {"width": 400, "height": 40}
    write_rows(tree / "pics.jsonl", rows)
    data = opened("- json_path: pics.jsonl\n  image_folder: pics\n", assets=None)
    assert 1000 <= data.lengths[0] <= 1020 and data.lengths[1] > 30000


# Options of assets


def test_packs_of_other_options_in_one_data_set_are_an_error_that_names_both(opened, tree):
    pack_rows(tree, [video_row("b.mp4")], "--lossless", "--padding", "exclude", out="other")
    data = opened("- json_path: packed/train.jsonl\n- json_path: other/train.jsonl\n", assets=None)
    assert isinstance(data[0], Example)
    (meta,) = (tree / "other").glob("images/*/*/meta.json")
    other = json.loads(meta.read_text())["config_hash"]
    with pytest.raises(AssetMismatch) as error:
        data[2]
    assert LOSSLESS.hash in str(error.value) and other in str(error.value)


def test_packs_of_other_options_than_expected_are_an_error(opened):
    expected = dataclasses.replace(LOSSLESS, num_images=2)
    with pytest.raises(AssetMismatch, match=f"{LOSSLESS.hash}, expected was {expected.hash}"):
        opened(assets=expected)[0]


def test_published_packs_beside_ours_are_an_error(opened, tree):
    pack = next((tree / "packed").glob("images/*/*__b__*"))
    (pack / "meta.json").unlink()
    data = opened("- json_path: packed/train.jsonl", assets=None)
    with pytest.raises(AssetMismatch, match="none \\(a published pack\\), expected was"):
        data[1]
    for meta in (tree / "packed").glob("images/*/*/meta.json"):
        meta.unlink()
    data = opened("- json_path: packed/train.jsonl", assets=None)
    assert isinstance(data[0], Example) and data[0].visuals[0].seconds is None


def test_videos_need_options(opened):
    with pytest.raises(ValueError, match=r"videos.jsonl row 0 \(id a\) has a video: give assets"):
        opened(assets=None)


def test_a_tree_that_lies_elsewhere_is_found_at_once(opened, tree):
    shutil.rmtree(tree / "packed" / "images")
    with pytest.raises(
        ValueError, match="none of the first 2 packs can be read; the first: .*lack"
    ):
        opened("- json_path: packed/train.jsonl", assets=None)


# Failures


def test_every_kind_of_failure_is_told_and_the_others_stay(opened, tree):
    (tree / "b.mp4").write_bytes(b"no video")
    (tree / "pics" / "two.png").unlink()
    next((tree / "packed").glob("images/*/*__b__*/*_001.png")).unlink()
    rows = read_rows(tree / "pics.jsonl")
    rows[2]["conversations"][0]["value"] = "<image>Why?"
    write_rows(tree / "pics.jsonl", rows)
    (tree / "pics.jsonl").open("a").write("{\n")
    data = opened()
    items = [data[i] for i in range(len(data))]
    failed = {i.index: (i.kind, i.source) for i in items if isinstance(i, Failure)}
    assert failed == {
        1: ("PackError", "packed/train.jsonl row 1 (id b)"),
        3: ("FileNotFoundError", "pics.jsonl row 1 (id ii)"),
        4: ("COUNT", "pics.jsonl row 2 (id t)"),
        5: ("RowError", "pics.jsonl row 3"),
        7: ("MediaError", "videos.jsonl row 1 (id b)"),
    }
    assert "_001.png is missing" in items[1].reason
    short = opened(max_length=100)
    assert short[0].kind == "OVERFLOW" and "max_length = 100" in short[0].reason


def test_a_batch_goes_on_without_what_failed(opened, tree, tokenizer):
    data = opened()
    collator = Collator(tokenizer.pad_token_id)
    whole = collator([data[0], data[4]])
    failure = Failure(9, "x row 1", "COUNT", "because")
    batch = collator([data[0], failure, data[4]])
    assert batch.failures == [failure] and batch.seen == 3
    for name, tensor in whole.inputs.items():
        torch.testing.assert_close(batch.inputs[name], tensor)


def test_a_batch_of_nothing_weighs_nothing(tokenizer, make_model):
    batch = Collator(tokenizer.pad_token_id)([Failure(0, "x", "COUNT", "because")])
    assert (batch.inputs["labels"] == IGNORED).all() and batch.inputs["patches"] is None
    model = make_model()
    loss = model(**batch.inputs, num_items_in_batch=5).loss
    assert loss.item() == 0
    assert Collator(0)([]).seen == 0


def test_failures_are_listed_and_too_many_stop_the_run(tmp_path):
    path = tmp_path / "logs" / "failures.jsonl"
    log = FailureLog(path, max_failures=0.01)
    log.add([], 500)
    assert not path.exists()
    failures = [Failure(i, f"a row {i}", "COUNT" if i % 2 else "OSError", "why") for i in range(11)]
    log.add(failures[:10], 20)  # 10 of 520, of the 1000 that the share is at least taken of
    log.add([], 480)
    with pytest.raises(TooManyFailures) as error:
        log.add(failures[10:], 10)
    for told in ("11 of 1010", "COUNT 5, OSError 6", "0.01", str(path), "a row 10: OSError: why"):
        assert told in str(error.value)
    assert read_rows(path) == [dataclasses.asdict(failure) for failure in failures]
    log.add([], 100)
    again = FailureLog(path, 0.01, seen=log.seen, failed=log.failed)
    with pytest.raises(TooManyFailures):
        again.add(failures[:1], 1)


def test_no_failure_at_all_can_be_asked_for(tmp_path):
    with pytest.raises(TooManyFailures):
        FailureLog(tmp_path / "f.jsonl", 0).add([Failure(0, "a", "COUNT", "why")], 100000)
    with pytest.raises(ValueError, match="max_failures = 1.5"):
        FailureLog(tmp_path / "f.jsonl", 1.5)


# Loading


def content(batch):
    return {name: None if t is None else t.tolist() for name, t in batch.inputs.items()}


def test_a_loader_gives_every_example_and_resumes(opened, tokenizer):
    data = opened()
    collator = Collator(tokenizer.pad_token_id)
    batches = LengthGroupedBatches(data.lengths, data.kinds, global_batch=2, batch_size=1)
    loader = make_loader(data, batches, collator)
    whole = list(loader)
    assert len(whole) == len(loader) == 8 and sum(batch.seen for batch in whole) == 7
    assert [batch.seen for batch in whole] == [1] * 7 + [0]
    batches.cursor = 2
    assert [content(batch) for batch in loader] == [content(batch) for batch in whole[4:]]


def test_worker_processes_give_the_same(opened, tree, tokenizer):
    """Freshly started ones: everything is pickled, errors as well."""
    (tree / "b.mp4").write_bytes(b"no video")
    data = opened()
    collator = Collator(tokenizer.pad_token_id)
    batches = LengthGroupedBatches(data.lengths, data.kinds, global_batch=4)
    here = list(make_loader(data, batches, collator))
    there = list(make_loader(data, batches, collator, workers=1))
    assert [content(batch) for batch in there] == [content(batch) for batch in here]
    assert [b.failures for b in there] == [b.failures for b in here] != [[], []]


@pytest.mark.slow  # a process is started, which imports torch
def test_a_worker_passes_on_that_assets_do_not_fit(opened, tokenizer):
    data = opened(assets=dataclasses.replace(LOSSLESS, num_images=2))
    batches = LengthGroupedBatches(data.lengths, data.kinds, global_batch=7)
    with pytest.raises(AssetMismatch, match="expected was"):
        list(make_loader(data, batches, Collator(tokenizer.pad_token_id), workers=1))
