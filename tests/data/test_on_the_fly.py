"""Packing in the workers gives what packing beforehand gave."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from codecvit.__main__ import main as codecvit
from codecvit.data import demo
from codecvit.data.on_the_fly import OnTheFly
from codecvit.data.pack import pack
from codecvit.data.packing import PackOptions
from codecvit.data.pipeline import make_loader
from codecvit.data.record import Storage
from codecvit.data.records import RecordSet, load_labels
from codecvit.data.sources import list_items
from codecvit.jobs import JobOptions

VIEW = ["--size", "56", "--budget", "64", "--num-frames", "6", "--storage", "raw"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("clips")
    demo.write_demo(folder, 6, 1)
    inputs = [str(folder / "train.csv"), "--out", str(folder / "sets"), "--workers", "0"]
    assert codecvit(["pack", *inputs, "--mode", "codec,frames,collage", *VIEW]) == 0
    return folder


@pytest.mark.parametrize("mode", ["codec", "frames", "collage"])
def test_the_same_size_and_budget_give_the_same_patches(packed, mode):
    records = RecordSet(packed / "sets" / mode)
    anew = OnTheFly(packed / "sets" / mode, packed / "train.csv", budget=64)
    assert anew.keys == records.keys
    for index in range(len(records)):
        a, b = anew[index], records[index]
        np.testing.assert_array_equal(a.sequence.patches, b.sequence.patches)
        np.testing.assert_array_equal(a.sequence.positions, b.sequence.positions)
        assert (a.key, a.view) == (b.key, b.view)


@pytest.mark.parametrize(
    "options", [["--mode", "frames"], ["--mode", "codec", "--set", "policy=random"]]
)
def test_what_was_drawn_by_a_seed_is_drawn_again(packed, tmp_path, options):
    command = ["pack", str(packed / "train.csv"), "--out", str(tmp_path), "--workers", "0"]
    assert codecvit([*command, *VIEW, *options, "--seed", "5"]) == 0
    records = RecordSet(tmp_path / options[1])
    anew = OnTheFly(records.path, packed / "train.csv", budget=64)
    for a, b in zip(anew, records, strict=True):
        np.testing.assert_array_equal(a.sequence.positions, b.sequence.positions)
    assert codecvit([*command, *VIEW, *options, "--seed", "6"]) == 2, "a set of another seed"


@pytest.mark.parametrize("view", [{"phase": 0.2}, {"cut_at": 0.0}])
def test_another_view_of_the_clip_is_seen_again(tmp_path, view):
    """Other samples, and another part of a wide picture, than by default."""
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (56, 112, 3), np.uint8)) for _ in range(12)]
    (tmp_path / "clips").mkdir()
    file = tmp_path / "clips" / "a.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=40)
    base = PackOptions(modes=("frames",), num_frames=4, size=56, budget=32, storage=Storage("raw"))
    for name, options in (("plain", base), ("other", dataclasses.replace(base, **view))):
        pack(list_items([tmp_path / "clips"]), tmp_path / name, options, jobs=JobOptions(workers=0))
    (plain,), (other,) = (RecordSet(tmp_path / name / "frames") for name in ("plain", "other"))
    (anew,) = OnTheFly(tmp_path / "other" / "frames", tmp_path / "clips", budget=32)
    assert (plain.sequence.patches != other.sequence.patches).any()
    np.testing.assert_array_equal(anew.sequence.patches, other.sequence.patches)
    np.testing.assert_array_equal(anew.sequence.positions, other.sequence.positions)


def test_another_size_and_budget_reach_the_batch_with_the_same_labels(packed):
    anew = OnTheFly(packed / "sets" / "codec", packed / "train.csv", budget=100, size=112)
    expected = load_labels(RecordSet(packed / "sets" / "codec"), "motion").values[:, 0]
    options = {"batch_size": 4, "budget": 100, "labels": "motion", "image_size": 112}
    with make_loader(anew, **options) as loader:
        batch = next(loader)
    assert batch["patches"].shape[:2] == (4, 100)
    assert batch["length"].tolist() == [100] * 4
    assert batch["positions"][..., 1:].max() == 7  # 8 rows and columns of patches
    assert batch["labels"][:, 0].tolist() == expected[batch["index"]].tolist()


def test_workers_read_the_videos_too(packed):
    anew = OnTheFly(packed / "sets" / "codec", packed / "train.csv", budget=64)
    batches = []
    for workers in (0, 1):
        with make_loader(anew, batch_size=3, budget=64, worker_count=workers) as loader:
            batches.append(next(loader))
    np.testing.assert_array_equal(batches[0]["patches"], batches[1]["patches"])


def test_a_video_that_cannot_be_decoded_counts_nothing(packed, tmp_path):
    shutil.copytree(packed, tmp_path, dirs_exist_ok=True)
    anew = OnTheFly(tmp_path / "sets" / "codec", tmp_path / "train.csv", budget=64)
    (tmp_path / anew.keys[2]).write_bytes(b"no video")
    with make_loader(anew, batch_size=6, budget=64, shuffle=False) as loader:
        batch = next(loader)
        assert batch["weight"].tolist() == [1, 1, 0, 1, 1, 1]
        assert loader.unreadable == {2}


def test_what_does_not_fit_is_named(packed, tmp_path):
    with pytest.raises(ValueError, match=r"lacks 6 of the 6 videos of .*codec"):
        OnTheFly(packed / "sets" / "codec", packed / "test.csv", budget=64)
    with pytest.raises(ValueError, match="size = 60 must be a multiple of the patch side 14"):
        OnTheFly(packed / "sets" / "codec", packed / "train.csv", budget=64, size=60)
    groups = ["--mode", "codec", *VIEW, "--set", "policy=groups", "--set", "policy_arg=2"]
    inputs = [str(packed / "train.csv"), "--out", str(tmp_path), "--workers", "0"]
    assert codecvit(["pack", *inputs, *groups]) == 0
    with pytest.raises(ValueError, match="not one per video"):
        OnTheFly(tmp_path / "codec", packed / "train.csv", budget=64)
