"""Assets are looked up by the path of a video, and never guessed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from codecvit.codec.llava.packs import PackError
from codecvit.llava.benchmarks.roots import AssetRoots
from codecvit.llava.benchmarks.tasks import video_folder

from ..mcq_made import write_clip
from .made import NEXTQA, benchmark


def test_assets_made_elsewhere_are_found_from_where_lmms_eval_looks(home, tmp_path):
    elsewhere = tmp_path / "data"
    shutil.move(home / "nextqa", elsewhere)
    assert benchmark("nextqa", "--videos", elsewhere, "--out", tmp_path / "out") == 0
    (home / "nextqa").symlink_to(elsewhere)
    found = AssetRoots([str(tmp_path / "out")])
    video = "NExTVideo/a/clip.mp4"
    root = video_folder(NEXTQA, home)
    asset = found.find(str(root / video), root)
    assert asset is not None and asset == found.find(str(elsewhere / video))
    assert found.find(str(tmp_path / "a" / "clip.mp4"), root) is None
    # The same name, another file
    (home / "nextqa").unlink()
    shutil.copytree(elsewhere, home / "nextqa")
    write_clip(home / "nextqa" / video, frames=20)
    with pytest.raises(PackError, match="was made of a file of"):
        found.find(str(home / "nextqa" / video), root)


def test_a_broken_video_is_listed_and_known_to_whoever_looks_it_up(home):
    broken = home / "nextqa" / "NExTVideo" / "broken.mp4"
    broken.write_bytes(b"no video")
    assert benchmark("nextqa", "--max-failures", 1) == 0
    assert benchmark("nextqa", "--max-failures", 0) == 1
    found = AssetRoots([str(home / "nextqa_mc_test_offline")])
    root = video_folder(NEXTQA, home)
    assert found.find(str(broken), root) is None
    assert "cannot be opened as a video" in found.failure(str(broken), root)
    assert found.failure(str(root / "NExTVideo/a/clip.mp4"), root) is None


def test_keys_of_very_long_names_agree(home):
    video = home / "nextqa" / f"{'x' * 90}.mp4"
    write_clip(video)
    assert benchmark("nextqa") == 0
    found = AssetRoots([str(home / "nextqa_mc_test_offline")])
    assert found.find(str(video), video_folder(NEXTQA, home)) is not None


def test_published_assets_are_found_by_their_list(home, tmp_path):
    assert benchmark("nextqa") == 0
    out, video = tmp_path / "old_offline", home / "nextqa/NExTVideo/a/clip.mp4"
    made = AssetRoots([str(home / "nextqa_mc_test_offline")]).find(str(video), home / "nextqa")
    shutil.copytree(made.folder, out / "assets" / "clip")
    (out / "old_videos.jsonl").write_text(json.dumps({"video": str(video), "key": "clip"}) + "\n")
    cfg = {"seq_len_frames": 8, "num_images": 2, "square_size": 64, "patch_size": 16}
    (out / "assets" / "clip" / "meta.json").write_text(json.dumps({"cfg": cfg}))
    asset = AssetRoots([str(out)]).find(str(video))
    assert Path(asset.folder) == out / "assets" / "clip" and asset.config == cfg
    assert AssetRoots([str(out)]).find(str(home / "nextqa/NExTVideo/b/clip.mp4")) is None
