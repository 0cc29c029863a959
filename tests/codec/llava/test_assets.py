"""`codecvit llava assets`: what an evaluation finds by key."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest

from codecvit.codec.llava import asset_key, key_of
from codecvit.codec.llava.cli import main
from codecvit.codec.llava.keys import config_hash
from codecvit.codec.llava.options import MosaicOptions

from .helpers import SMALL, tree


@pytest.fixture
def assets(tmp_path, clips):
    """assets(rows, *options, out=name): runs the verb; (exit status, out folder)."""

    def run(rows, *options, out="out", workers=0, root=clips, small=True):
        path = tmp_path / f"{out}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        arguments = ["--jsonl", path, "--out", tmp_path / out, "--root", root]
        arguments += [*(SMALL if small else ()), "--workers", workers, *options]
        return main(["assets", *map(str, arguments)]), tmp_path / out

    return run


def failed(out):
    return [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]


def test_the_files_of_a_key(assets, clips):
    row = {"video": "a/clip.mp4", "task": "t", "doc_id": 3}
    status, out = assets([row])
    folder = out / "assets" / asset_key("a/clip.mp4", str(clips))
    assert status == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        *("frame_ids.npy", "meta.json", "mosaic_000.jpg", "mosaic_001.jpg", "mosaic_002.jpg"),
        *("positions_thw.npy", "visible_indices.npy"),
    ]
    ids, positions, visible = (
        np.load(folder / f"{name}.npy")
        for name in ("frame_ids", "positions_thw", "visible_indices")
    )
    assert (ids.dtype, positions.dtype, visible.dtype) == (np.int32, np.int32, np.int64)
    assert len(ids) == 16 and positions.shape == (48, 3) and visible.shape == (48,)
    # 16 samples: t counts samples in one file and slots in the other.
    t, h, w = visible // 16, visible % 16 // 4, visible % 4
    slots = np.rint(np.arange(16) * 63 / 15).astype(int)
    np.testing.assert_array_equal(positions, np.stack([slots[t], h, w], axis=1))

    meta = json.loads((folder / "meta.json").read_text())
    data = (clips / "a" / "clip.mp4").read_bytes()
    assert meta["source"] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert meta["config"]["selection"]["signal"] == "estimate"
    assert meta["config"]["num_images"] == 3 and meta["config"]["size"] == 64
    assert meta["config_hash"] == config_hash(meta["config"])
    assert meta["config_hash"] == MosaicOptions(64 // 4, 3, 64).hash
    assert meta["key"] == folder.name and meta["video"] == "a/clip.mp4"
    assert meta["frame_ids"] == ids.tolist()
    np.testing.assert_allclose(meta["seconds"], ids / 25, atol=1e-5)


def test_with_64_samples_both_positions_agree(assets):
    _, out = assets([{"video": "long.mp4", "key": "k"}], "--num-frames", 64)
    positions, visible = (
        np.load(out / "assets" / "k" / f"{name}.npy")
        for name in ("positions_thw", "visible_indices")
    )
    np.testing.assert_array_equal(positions @ (16, 4, 1), visible)


def test_keys_of_one_stem_hostile_keys_and_given_keys(assets, clips):
    rows = [{"video": "a/clip.mp4"}, {"video": "b/clip.mp4"}]
    rows += [
        {"video": "one.mp4", "key": key} for key in ("../../up", "", "a/b", "a:b", "电影", "k")
    ]
    status, out = assets(rows)
    assert status == 0 and not failed(out)
    folders = sorted(path.name for path in (out / "assets").iterdir())
    # The empty key is none: the path gives one.
    assert folders == sorted({key_of(row, str(clips)) for row in rows}) and len(folders) == 8
    assert {path.name for path in out.iterdir()} == {"assets", "failures.jsonl"}


def test_two_videos_of_one_key_are_refused(assets):
    rows = [
        {"video": "a/clip.mp4", "key": "same"},
        {"video": "b/clip.mp4", "key": "same"},
        {"video": "one.mp4", "key": "k"},
        {"video": "./one.mp4", "key": "k"},
    ]
    _, out = assets(rows)
    assert [path.name for path in (out / "assets").iterdir()] == ["k"]
    (failure,) = failed(out)
    assert (failure["key"], failure["kind"]) == ("same", "KeyCollision")
    assert "b/clip.mp4" in failure["reason"] and failure["video"] == "a/clip.mp4"


def test_failures_are_listed(assets):
    rows = [{"video": "gone.mp4", "key": "k"}, {"key": "no video"}, {"video": "one.mp4"}]
    status, out = assets(rows, "--max-failures", 2)
    assert status == 0
    assert [(f["key"], f["video"], f["kind"]) for f in failed(out)] == [
        ("k", "gone.mp4", "MediaError"),
        ("no video", None, "RowError"),
    ]
    assert assets(rows, "--max-failures", 1)[0] == 1


def test_resume_compares_options_and_source(assets, clips, tmp_path, capsys):
    root = tmp_path / "videos"
    root.mkdir()
    shutil.copy(clips / "a" / "clip.mp4", root / "v.mp4")
    rows = [{"video": "v.mp4"}]

    def run(*options):
        assets(rows, *options, root=root)
        return capsys.readouterr().out.splitlines()[-1].split(": ")[1]

    assert run() == "1 ok, 0 skipped, 0 failed"
    assert run() == "0 ok, 1 skipped, 0 failed"
    assert run("--set", "w_mv=0.5") == "1 ok, 0 skipped, 0 failed"
    assert run("--set", "w_mv=0.5") == "0 ok, 1 skipped, 0 failed"
    shutil.copy(clips / "b" / "clip.mp4", root / "v.mp4")
    assert run("--set", "w_mv=0.5") == "1 ok, 0 skipped, 0 failed"


def test_workers_and_array_jobs_give_the_same_bytes(assets):
    rows = [{"video": f"{name}.mp4"} for name in ("long", "a/clip", "b/clip", "three", "gone")]
    _, one = assets(rows, out="one")
    _, two = assets(rows, out="two", workers=2)
    for number in (1, 0):
        _, jobs = assets(rows, "--shard", f"{number}/2", out="jobs")
        assert (jobs / "failures.jsonl").exists() == (number == 0)
    parts = {name: data for name, data in tree(jobs).items() if ".parts/" not in name}
    assert tree(one) == tree(two) == parts
