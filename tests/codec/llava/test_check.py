"""`codecvit llava check` finds every kind of damage."""

from __future__ import annotations

import json

import numpy as np
import pytest

from codecvit.codec.llava.cli import main
from codecvit.codec.llava.keys import asset_key

from .helpers import SMALL, read_rows, video_row

IMAGE_ROW = {
    "id": "i",
    "image": "pics/a.jpg",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}],
}


def rewrite(path, change):
    """Applies change(value) to a JSON file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_row(out, change, row=0):
    rows = read_rows(out)
    change(rows[row])
    (out / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def data(raw, make):
    """A data set of a video row and an image row without a fault; (folder, its pack)."""
    status, out = make(raw([video_row("a/clip.mp4"), IMAGE_ROW]))
    assert status == 0
    (out / "pics").mkdir()
    (out / "pics" / "a.jpg").write_bytes(b"x")
    (pack,) = out.glob("images/*/*")
    return out, pack


@pytest.fixture
def check(capsys):
    """check(target, *options): (exit status, problems, last line)."""

    def run(target, *options):
        capsys.readouterr()
        status = main(["check", str(target), "--workers", "0", *map(str, options)])
        *problems, last = capsys.readouterr().out.splitlines() or [""]
        return status, problems, last

    return run


def save(path, change):
    array = change(np.load(path))
    np.save(path, array)
    meta = path.parent / "meta.json"
    rewrite(meta, lambda m: m["files"].update({path.name: path.stat().st_size}))


def test_nothing_is_wrong(check, data):
    status, problems, last = check(data[0] / "train.jsonl")
    assert status == 0 and not problems and last.endswith("no problems")


def flip_first(positions, value):
    positions[0] = value
    return positions


DAMAGE = {
    "deleted mosaic": (lambda out, pack: (pack / "clip_001.jpg").unlink(), "FILE", "is missing"),
    "cut mosaic": (
        lambda out, pack: (pack / "clip_001.jpg").write_bytes(b"\xff\xd8"),
        "FILE",
        "has 2 bytes instead of",
    ),
    "deleted positions": (
        lambda out, pack: (pack / "positions_thw.npy").unlink(),
        "FILE",
        "lacks positions_thw.npy",
    ),
    "deleted pack": (
        lambda out, pack: [path.unlink() for path in pack.iterdir()],
        "FILE",
        "lacks positions_thw.npy",
    ),
    "too few <image>": (
        lambda out, pack: edit_row(
            out, lambda row: row["conversations"][0].update(value="<image>\nWhat?")
        ),
        "COUNT",
        "1 <image> for 3 images",
    ),
    "too many <image> in an image row": (
        lambda out, pack: edit_row(
            out, lambda row: row["conversations"][0].update(value="<image><image>"), 1
        ),
        "COUNT",
        "2 <image> for 1 images",
    ),
    "image of an image row": (
        lambda out, pack: (out / "pics" / "a.jpg").unlink(),
        "FILE",
        "a.jpg does not exist",
    ),
    "images in another order": (
        lambda out, pack: edit_row(out, lambda row: row["image"].reverse()),
        "FILE",
        "in their order",
    ),
    "positions of another type": (
        lambda out, pack: save(pack / "positions_thw.npy", lambda p: p.astype(np.int64)),
        "POSITIONS",
        "int64 [48, 3] instead of int32",
    ),
    "positions of another shape": (
        lambda out, pack: save(pack / "positions_thw.npy", lambda p: p[:-1]),
        "POSITIONS",
        "47 positions do not fill 3 mosaics",
    ),
    "positions of fewer cells": (
        lambda out, pack: save(pack / "positions_thw.npy", lambda p: p[:-3]),
        "POSITIONS",
        "45 positions for 48 cells",
    ),
    "t out of range": (
        lambda out, pack: save(pack / "positions_thw.npy", lambda p: flip_first(p, (64, 0, 0))),
        "POSITIONS",
        "position 0 is [64, 0, 0], outside of 64 x 4 x 4",
    ),
    "w out of range": (
        lambda out, pack: save(pack / "positions_thw.npy", lambda p: flip_first(p, (0, 0, 4))),
        "POSITIONS",
        "outside of 64 x 4 x 4",
    ),
    "no array": (
        lambda out, pack: (
            (pack / "positions_thw.npy").write_bytes(b"x"),
            rewrite(pack / "meta.json", lambda m: m["files"].update({"positions_thw.npy": 1})),
        ),
        "FILE",
        "is no array",
    ),
    "wrong hash": (
        lambda out, pack: rewrite(pack / "meta.json", lambda m: m["config"].update(seed=7)),
        "CONFIG",
        "are not those of its hash",
    ),
    "meta of nothing": (
        lambda out, pack: rewrite(pack / "meta.json", lambda m: m.pop("config")),
        "FILE",
        "lacks an entry",
    ),
    "a video left": (
        lambda out, pack: edit_row(out, lambda row: row.update(video="x.mp4")),
        "ROW",
        "still has a video",
    ),
    "no conversation": (
        lambda out, pack: edit_row(out, lambda row: row.pop("conversations")),
        "ROW",
        "conversations must be",
    ),
    "no row": (
        lambda out, pack: (out / "train.jsonl").open("a").write("{\n"),
        "ROW",
        "is no JSON",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found(check, data, name):
    damage, kind, words = DAMAGE[name]
    damage(*data)
    status, problems, last = check(data[0] / "train.jsonl")
    assert status == 1
    assert len(problems) == 1 and problems[0].startswith(f"{kind} "), problems
    assert words in problems[0]
    assert last.endswith(f"1 problems ({kind} 1)")


def test_packs_of_different_options_are_found(check, raw, make):
    path = raw([video_row("a/clip.mp4", "1"), video_row("b/clip.mp4", "2")])
    _, out = make(path)
    first = read_rows(out)[0]
    make(path, "--num-images", 2)
    (out / "old").mkdir()
    _, old = make(raw([video_row("one.mp4", "3")], "one.json"), out="old")
    rows = [*read_rows(out), *read_rows(old)]
    rows[2]["image"] = [f"../old/{name}" for name in rows[2]["image"]]
    rows[2]["positions_thw"] = f"../old/{rows[2]['positions_thw']}"
    (out / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert first["image"] != rows[0]["image"]
    status, problems, _ = check(out / "train.jsonl")
    assert status == 1
    assert [problem for problem in problems if "different options" in problem]


def test_misses_of_raw_rows(check, data, raw):
    path = raw([video_row("a/clip.mp4"), IMAGE_ROW, video_row("gone.mp4", "g"), IMAGE_ROW])
    status, problems, _ = check(data[0] / "train.jsonl", "--keys", path)
    assert status == 1
    assert [problem.split(":")[0] for problem in problems] == ["MISS id g", "MISS id i"]


def test_published_packs_are_checked_by_decoding(check, data):
    out, pack = data
    (pack / "meta.json").unlink()
    assert check(out / "train.jsonl")[0] == 0
    image = pack / "clip_002.jpg"
    image.write_bytes(image.read_bytes()[:400])
    status, problems, _ = check(out / "train.jsonl")
    assert status == 1 and "is no whole image" in problems[0]


@pytest.fixture
def assets(tmp_path, clips):
    """Assets of two videos; (folder, their rows)."""
    rows = tmp_path / "videos.jsonl"
    rows.write_text('{"video": "a/clip.mp4"}\n{"video": "one.mp4", "key": "one"}')
    out = tmp_path / "out"
    arguments = ["--jsonl", rows, "--out", out, "--root", clips, "--workers", 0, *SMALL]
    assert main(["assets", *map(str, arguments)]) == 0
    return out, rows


def test_assets_without_a_fault(check, assets, clips):
    out, rows = assets
    for target in (out, out / "assets"):
        assert check(target, "--keys", rows, "--root", clips)[0] == 0


def test_every_miss_is_listed(check, assets, clips):
    out, rows = assets
    with rows.open("a") as file:
        file.write('\n{"video": "b/clip.mp4"}\n{"video": "one.mp4", "key": "two"}\n{"key": 3}')
        file.write('\n{"nothing": 1}')
    status, problems, last = check(out, "--keys", rows, "--root", clips)
    assert status == 1 and last.endswith("4 problems (MISS 3, ROW 1)")
    assert problems[0].startswith(
        f"MISS {asset_key('b/clip.mp4', str(clips))}: no assets of b/clip"
    )
    assert [problem.split(":")[0] for problem in problems[1:3]] == ["MISS two", "MISS 3"]


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lambda f: (f / "mosaic_000.jpg").unlink(), "FILE", "is missing"),
        (lambda f: (f / "frame_ids.npy").unlink(), "FILE", "is missing"),
        (lambda f: (f / "meta.json").unlink(), "FILE", "unfinished"),
        (lambda f: rewrite(f / "meta.json", lambda m: m.update(key="x")), "CONFIG", "the key x"),
        (lambda f: save(f / "visible_indices.npy", lambda v: v + 1), "POSITIONS", "other patches"),
        (
            lambda f: save(f / "visible_indices.npy", lambda v: v.astype(np.int32)),
            "POSITIONS",
            "instead of int64",
        ),
        (lambda f: save(f / "frame_ids.npy", lambda v: v[:0]), "POSITIONS", "other patches"),
    ],
)
def test_damage_to_assets_is_found(check, assets, damage, kind, words):
    out, _ = assets
    damage(out / "assets" / "one")
    status, problems, _ = check(out)
    assert status == 1 and len(problems) == 1
    assert problems[0].startswith(f"{kind} one: ") and words in problems[0]


def test_nothing_to_check_is_an_error(check, tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("empty.jsonl", "empty", "missing"):
        assert check(tmp_path / name)[0] == 2
