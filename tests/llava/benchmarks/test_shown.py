"""Where the videos of an evaluation come from: assets, packing, whole frames, or a refusal."""

from __future__ import annotations

import json
import shutil

import pytest

from codecvit.codec.llava.keys import key_of

from ..mcq_made import write_clip
from .made import ask, results, video_docs


def test_a_missing_asset_stops_the_run_before_its_first_question(make, bench, tmp_path, capsys):
    shutil.copytree(bench / "made", tmp_path / "made")
    key = key_of({"video": "videos/video_10337.mp4"}, str(bench))
    shutil.rmtree(tmp_path / "made" / "assets" / key)
    model = make(assets=str(tmp_path / "made"))
    model._answerer.converse = pytest.fail
    with pytest.raises(SystemExit, match=r"1 of 2 videos have no usable[^\0]*video_10337.mp4: no "):
        ask(model, video_docs(bench))
    assert not (tmp_path / "results").exists()
    # Packed now, it is what its asset would have been.
    packed = make(assets=str(tmp_path / "made"), on_miss="pack", debug=1)
    replies = ask(packed, video_docs(bench))
    summary, records = results(tmp_path / "results")
    assert summary["tasks"]["mine"]["sources"] == {"hit": 2, "packed": 2}
    assert "PACKED" in capsys.readouterr().err
    assert replies == ask(make(results="none"), video_docs(bench))
    # Whole frames have to be asked for, and have as many tokens before pooling.
    frames = make(assets=str(tmp_path / "made"), on_miss="frames")
    ask(frames, video_docs(bench))
    summary, _ = results(tmp_path / "results")
    assert summary["tasks"]["mine"]["sources"] == {"hit": 2, "miss": 2}
    assert summary["visuals"]["frames"]["num_frames"] == 3
    path = str(bench / "videos" / "video_10337.mp4")
    visuals = [m._shown.load(path)[0] for m in (frames, packed)]
    assert len(visuals[0]) == len(visuals[1]) and len(set(visuals[0].positions[:, 0])) == 3


def test_an_asset_that_does_not_fit_stops_the_run_whatever_was_asked_for(make, bench, tmp_path):
    docs = video_docs(bench)
    shutil.copytree(bench, tmp_path / "bench")
    docs = [
        {**d, "show": [d["show"][0].replace(str(bench), str(tmp_path / "bench"))]} for d in docs
    ]
    options = {"assets": str(tmp_path / "bench/made"), "video_root": str(tmp_path / "bench")}
    ask(make(**options), docs)  # moved with its videos, it fits
    write_clip(tmp_path / "bench/videos/video_10336.mp4", frames=30)
    for on_miss in ("error", "pack"):
        with pytest.raises(SystemExit, match="was made of a file of"):
            ask(make(**options, on_miss=on_miss), docs)
    shutil.copy(bench / "videos/video_10336.mp4", tmp_path / "bench/videos/video_10336.mp4")
    next((tmp_path / "bench/made/assets").glob("video_10337*/mosaic_000.*")).unlink()
    with pytest.raises(SystemExit, match="mosaic_000.*is missing"):
        ask(make(**options, on_miss="pack"), docs)
    next((tmp_path / "bench/made/assets").glob("video_10336*/meta.json")).write_text("{")
    with pytest.raises(SystemExit, match="2 assets don't fit"):
        ask(make(**options, on_miss="frames"), docs)


def test_keys_of_other_folders_are_never_taken(make, bench, tmp_path):
    other = tmp_path / "elsewhere" / "video_10336.mp4"
    other.parent.mkdir()
    shutil.copy(bench / "videos/video_10336.mp4", other)
    with pytest.raises(SystemExit, match="no asset"):
        ask(make(), [{"show": [str(other)], "text": "What?"}])


def test_several_roots_are_looked_through(make, bench, tmp_path):
    for number in range(2):
        source = next((bench / "made/assets").glob(f"video_{10336 + number}*"))
        shutil.copytree(source, tmp_path / f"part{number}_offline" / "assets" / source.name)
    parts = [str(tmp_path / f"part{number}_offline") for number in range(2)]
    docs = video_docs(bench)
    expected = ask(make(results="none"), docs)
    for assets in (":".join(parts), str(tmp_path)):
        assert ask(make(assets=assets), docs) == expected
        assert results(tmp_path / "results")[0]["visuals"]["videos"] == {"hit": 2}
    with pytest.raises(SystemExit, match="no asset"):
        ask(make(assets=parts[0]), docs)


def test_the_models_training_decides(plugin, make, saved, bench, tmp_path):
    for path in saved.iterdir():
        shutil.copy(path, tmp_path / path.name)
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "assets_hash": "0123456789abcdef"}))
    with pytest.raises(SystemExit, match="0123456789abcdef: the model's training"):
        ask(make(pretrained=str(tmp_path)), video_docs(bench))
