"""The verb that makes the assets of public benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codecvit.codec.llava.cli import main
from codecvit.codec.llava.keys import key_of
from codecvit.llava.benchmarks.roots import AssetRoots
from codecvit.llava.benchmarks.tasks import video_folder

from .made import NEXTQA, benchmark


def test_assets_lie_under_the_keys_that_are_looked_up(home, capsys):
    assert benchmark("nextqa") == 0
    out = home / "nextqa_mc_test_offline"
    rows = [json.loads(x) for x in (out / "nextqa_mc_test_videos.jsonl").read_text().splitlines()]
    root = home / "nextqa"
    names = ["NExTVideo/a/clip.mp4", "NExTVideo/b/Other.MP4", "NExTVideo/b/clip.mp4"]
    assert [row["video"] for row in rows] == names
    assert [row["key"] for row in rows] == [key_of({"video": n}, str(root)) for n in names]
    assert sorted(p.name for p in (out / "assets").iterdir()) == sorted(r["key"] for r in rows)
    assert main(["check", str(out), "--keys", str(out / "nextqa_mc_test_videos.jsonl")]) == 0
    found = AssetRoots([str(out)])
    for row in rows:
        asset = found.find(str(root / row["video"]), video_folder(NEXTQA, home))
        assert Path(asset.folder) == out / "assets" / row["key"]
    # Again: everything is there
    stamp = (out / "assets" / rows[0]["key"] / "mosaic_000.jpg").stat().st_mtime_ns
    capsys.readouterr()
    assert benchmark("nextqa") == 0
    assert (out / "assets" / rows[0]["key"] / "mosaic_000.jpg").stat().st_mtime_ns == stamp
    assert "3 videos" in capsys.readouterr().out


def test_what_cannot_work_is_told_with_its_remedy(home, tmp_path, capsys):
    for arguments, message in (
        (["videomme"], "name their folder with --videos DIR, or let --download fetch lmms-eval/Vi"),
        (["nextqa,videomme", "--videos", tmp_path], "is the folder of one benchmark, not of 2"),
        (["nextqa", "--videos", tmp_path / "none"], "is no folder"),
        (["nothing"], "no benchmark 'nothing'"),
    ):
        assert benchmark(*arguments) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert benchmark("nextqa", "--videos", tmp_path / "empty") == 2
    assert "holds no videos" in capsys.readouterr().err
    # Of several, those that are there are done.
    assert benchmark("ai2d,videomme,nextqa") == 1
    printed = capsys.readouterr()
    assert "ai2d: images, which need no assets" in printed.out and "videomme:" in printed.err
    assert (home / "nextqa_mc_test_offline" / "assets").is_dir()
    with pytest.raises(ValueError, match="does not exist: make it with"):
        AssetRoots([str(tmp_path / "none")])


def test_a_dry_run_makes_nothing(home, capsys):
    assert benchmark("nextqa", "--dry-run") == 0
    assert "3 videos" in capsys.readouterr().out
    assert not (home / "nextqa_mc_test_offline").exists()
