"""Parts of videos: bounds are kept, and every part has assets of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from codecvit.codec.llava import key_of
from codecvit.codec.llava.cli import main
from codecvit.codec.llava.span import Span

from .helpers import SMALL

ROW = {"video": "long.mp4"}  # 70 frames, 25 a second


@pytest.fixture
def make_assets(tmp_path, clips):
    def run(rows, out="out"):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        arguments = ["--jsonl", path, "--out", tmp_path / out, "--root", clips, "--workers", 0]
        return main(["assets", *map(str, [*arguments, *SMALL])]), tmp_path / out / "assets"

    return run


def test_every_part_has_a_key_of_its_own(clips):
    rows = [
        ROW,
        {**ROW, "start": 1},
        {**ROW, "end": 1},
        {**ROW, "start": 1, "end": 2},
        {**ROW, "start": 1, "end": 2.00001},
        {**ROW, "end_frame": 1},
    ]
    keys = [key_of(row, str(clips)) for row in rows]
    assert len(set(keys)) == len(keys)
    assert all(key.startswith(keys[0]) for key in keys)
    assert key_of({**ROW, "start": 0.0}, str(clips)) == keys[0]  # bounds that cut nothing
    assert key_of({**ROW, "start": None}, str(clips)) == keys[0]
    assert key_of({**ROW, "start": 1, "key": "mine"}, str(clips)) == "mine"


def test_assets_show_only_frames_between_the_bounds(make_assets, clips):
    rows = [ROW, {**ROW, "start": 0.4, "end": 1.2}, {**ROW, "end_frame": 20}]
    rows += [{**ROW, "start": 0.4, "end_frame": 20}, {**ROW, "end_frame": 500}]
    status, folder = make_assets(rows)
    assert status == 0
    ids = [np.load(folder / key_of(row, str(clips)) / "frame_ids.npy") for row in rows]
    assert (ids[0][0], ids[0][-1]) == (0, 69)
    assert (ids[1][0], ids[1][-1]) == (10, 29)  # 0.4 s is frame 10, 1.2 s is frame 30
    assert (ids[2][0], ids[2][-1]) == (0, 20)  # the last frame belongs to it
    assert (ids[3][0], ids[3][-1]) == (10, 20)
    assert np.array_equal(ids[4], ids[0])
    meta = json.loads((folder / key_of(rows[1], str(clips)) / "meta.json").read_text())
    assert meta["span"] == {"start": 0.4, "end": 1.2}
    assert meta["seconds"][0] == 0.4


def test_assets_of_a_part_are_recognised_and_not_mistaken(make_assets, clips):
    part = {**ROW, "start": 0.4, "end": 1.2, "key": "mine"}
    _, folder = make_assets([part])
    written = (folder / "mine" / "meta.json").stat().st_mtime_ns
    make_assets([part])
    assert (folder / "mine" / "meta.json").stat().st_mtime_ns == written
    make_assets([{**ROW, "key": "mine"}])
    assert "span" not in json.loads((folder / "mine" / "meta.json").read_text())
    make_assets([{**part, "end": 1.0}])
    assert json.loads((folder / "mine" / "meta.json").read_text())["span"]["end"] == 1.0


def test_two_parts_under_one_key_are_refused(make_assets):
    status, folder = make_assets([{**ROW, "key": "k"}, {**ROW, "key": "k", "start": 1}, ROW])
    assert status == 0 and not (folder / "k").exists()
    listed = (folder.parent / "failures.jsonl").read_text()
    assert "KeyCollision" in listed and "long.mp4_1-" in listed


def test_impossible_bounds_are_listed(make_assets):
    rows = [{**ROW, "start": 2, "end": 1}, {**ROW, "start": "x"}, {**ROW, "start": 9}]
    rows += [{**ROW, "start": 1.0, "end_frame": 3}, ROW]
    status, folder = make_assets(rows)
    assert status == 0 and len(list(folder.glob("*/meta.json"))) == 1
    reasons = (folder.parent / "failures.jsonl").read_text()
    for part in ("greater than start", "must be a number", "no frame between", "lies before start"):
        assert part in reasons, part


@pytest.mark.parametrize("bad", [{"start": float("inf")}, {"end": 0}, {"end_frame": -1}])
def test_spans_that_are_none(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Span(**bad)
