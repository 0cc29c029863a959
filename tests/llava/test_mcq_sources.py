"""What a question shows: assets found by key, misses told beforehand, packing equal to assets."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from codecvit.codec.config import PRESETS
from codecvit.codec.llava import key_of
from codecvit.codec.llava.cli import main
from codecvit.codec.llava.options import MosaicOptions
from codecvit.codec.llava.span import Span
from codecvit.llava.data.assets import PUBLISHED
from codecvit.llava.mcq.questions import read_questions
from codecvit.llava.mcq.sources import Sources, VisualError, options_of, video_rows

from .mcq_made import write_clip, write_merv

OPTIONS = MosaicOptions(num_frames=16, num_images=3, size=64)
FLAGS = ["--num-frames", "16", "--num-images", "3", "--size", "64"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of a benchmark of 3 videos and 6 questions, its assets)."""
    folder = write_merv(tmp_path_factory.mktemp("bench"), questions=6, videos=3)
    for name in (10336, 10337, 10338):
        write_clip(folder / "videos" / f"video_{name}.mp4", frames=24 + name % 3)
    out = tmp_path_factory.mktemp("assets")
    listed = out / "videos.jsonl"
    arguments = ["eval", "--benchmark", folder, "--list-videos", listed]
    assert main([*map(str, arguments)]) == 0
    make_assets(listed, folder, out / "made")
    return folder, out / "made"


def make_assets(listed, root, out, *flags):
    arguments = ["--jsonl", listed, "--root", root, "--out", out, "--workers", 0, *FLAGS, *flags]
    assert main(["assets", *map(str, arguments)]) == 0


def test_listed_videos_are_those_of_the_questions_once(made):
    folder, assets = made
    rows = [json.loads(x) for x in (assets.parent / "videos.jsonl").read_text().splitlines()]
    assert rows == [
        {"video": f"videos/video_{name}.mp4", "end_frame": 595} for name in (10336, 10337, 10338)
    ]
    assert len(list((assets / "assets").iterdir())) == 3


def test_every_question_gets_the_assets_of_its_video(made):
    folder, assets = made
    questions, _ = read_questions(folder)
    sources = Sources(str(folder), str(assets), OPTIONS)
    plan = sources.plan(questions, OPTIONS.hash)
    assert plan.counts == {"asset": 3} and plan.config_hash == OPTIONS.hash
    seen = {q.id: sources.load(q) for q in questions}
    assert {source for _, source in seen.values()} == {"asset"}
    for question in questions:
        meta = json.loads((assets / "assets" / sources.key(question) / "meta.json").read_text())
        assert meta["video"] == question.video


def test_packed_on_the_fly_is_the_asset_bit_for_bit(made):
    folder, assets = made
    questions, _ = read_questions(folder)
    stored = Sources(str(folder), str(assets), OPTIONS)
    packed = Sources(str(folder), None, OPTIONS, "pack")
    stored.plan(questions)
    assert packed.plan(questions).counts == {"packed": 3}
    a, (b, source) = stored.load(questions[0])[0], packed.load(questions[0])
    assert source == "packed"
    for field in dataclasses.fields(a):
        assert np.array_equal(getattr(a, field.name), getattr(b, field.name)), field.name


def test_a_miss_is_an_error_before_the_first_question(made, tmp_path):
    folder, assets = made
    questions, _ = read_questions(folder)
    (tmp_path / "assets").mkdir()
    sources = Sources(str(folder), str(tmp_path), OPTIONS)
    with pytest.raises(ValueError, match=r"3 of 3 videos have no assets(.|\n)*--on-miss pack"):
        sources.plan(questions)
    with pytest.raises(ValueError, match="give --assets, or --on-miss"):
        Sources(str(folder), None, OPTIONS)
    with pytest.raises(ValueError, match="does not exist: make it"):
        Sources(str(folder), str(tmp_path / "nowhere"), OPTIONS)


def test_whole_frames_are_shown_only_when_asked_for(made, tmp_path):
    folder, _ = made
    questions, _ = read_questions(folder)
    sources = Sources(str(folder), None, OPTIONS, "frames")
    assert sources.plan(questions).counts == {"frames": 3}
    visual, source = sources.load(questions[0])
    assert source == "frames" and len(visual) == 3 * 16
    t, counts = np.unique(visual.positions[:, 0], return_counts=True)
    assert t.tolist() == [0, 32, 63] and counts.tolist() == [16] * 3  # all patches of 3 frames
    assert sources.describe()["frames_hash"] not in (None, OPTIONS.hash)


def test_videos_that_assets_gave_up_on_are_counted_and_stop_nothing(made, tmp_path):
    folder = write_merv(tmp_path / "bench", questions=4, videos=2)
    write_clip(folder / "videos" / "video_10336.mp4")
    (folder / "videos" / "video_10337.mp4").write_bytes(b"no video at all")
    questions, _ = read_questions(folder)
    listed = tmp_path / "videos.jsonl"
    listed.write_text("\n".join(map(json.dumps, video_rows(questions, str(folder)))))
    make_assets(listed, folder, tmp_path / "out")
    sources = Sources(str(folder), str(tmp_path / "out"), OPTIONS)
    assert sources.plan(questions).counts == {"asset": 1, "none": 1}
    with pytest.raises(VisualError, match="packing gave it up: .*cannot be opened"):
        sources.load(questions[1])


def test_a_missing_or_broken_file_costs_its_questions(made, tmp_path):
    folder = write_merv(tmp_path / "bench", questions=2, videos=2)
    (folder / "videos" / "video_10337.mp4").write_bytes(b"no video at all")
    questions, _ = read_questions(folder)
    sources = Sources(str(folder), None, OPTIONS, "pack")
    sources.plan(questions)
    with pytest.raises(VisualError, match="does not exist"):
        sources.load(questions[0])
    with pytest.raises(VisualError, match="cannot be opened"):
        sources.load(questions[1])


def test_options_have_to_agree(made, tmp_path):
    folder, assets = made
    questions, _ = read_questions(folder)
    other = dataclasses.replace(OPTIONS, num_images=2)
    with pytest.raises(ValueError, match=f"{OPTIONS.hash}: .*; .*the model's training|training.*;"):
        Sources(str(folder), str(assets), OPTIONS).plan(questions, other.hash)
    with pytest.raises(ValueError, match="the model's training"):
        Sources(str(folder), None, OPTIONS, "pack").plan(questions, other.hash)
    # With all assets there, the options of packing are not used.
    Sources(str(folder), str(assets), other, "pack").plan(questions, OPTIONS.hash)
    key = Sources(str(folder), str(assets), OPTIONS).key(questions[0])
    partly = tmp_path / "partly" / "assets"
    partly.mkdir(parents=True)
    (partly / key).symlink_to(assets / "assets" / key)
    with pytest.raises(ValueError, match="packing on the fly"):
        Sources(str(folder), str(tmp_path / "partly"), other, "pack").plan(questions)
    mixed = Sources(str(folder), str(tmp_path / "partly"), OPTIONS, "pack")
    assert mixed.plan(questions).counts == {"asset": 1, "packed": 2}


def test_bounds_are_kept_when_packing(made):
    folder, _ = made
    question = dataclasses.replace(read_questions(folder)[0][0], span=Span(0.5, 1.5))
    sources = Sources(str(folder), None, OPTIONS, "pack")
    sources.plan([question])
    visual, _ = sources.load(question)
    assert visual.seconds.min() >= 0.5 and visual.seconds.max() < 1.5


def test_assets_of_the_whole_serve_only_bounds_that_cut_nothing(made, tmp_path):
    folder, _ = made
    listed = tmp_path / "videos.jsonl"
    listed.write_text(json.dumps({"video": "videos/video_10336.mp4"}))
    make_assets(listed, folder, tmp_path / "out")
    sources = Sources(str(folder), str(tmp_path / "out"), OPTIONS)
    question = read_questions(folder)[0][0]
    last = 24 + 10336 % 3 - 1
    for span, found in (
        (Span(), True),
        (Span(end_frame=last), True),
        (Span(end_frame=last - 1), False),
        (Span(end=1.0), False),
        (Span(end=1.0, end_frame=595), False),
    ):
        folder_of_it = sources.asset(dataclasses.replace(question, span=span))
        assert (folder_of_it is not None) == found, span
    assert key_of(question.row, str(folder)) != key_of({"video": question.video}, str(folder))


def test_damaged_assets_cost_their_questions(made, tmp_path):
    folder, assets = made
    questions, _ = read_questions(folder)
    key = Sources(str(folder), str(assets), OPTIONS).key(questions[0])
    copy = tmp_path / "assets" / key
    copy.mkdir(parents=True)
    for path in (assets / "assets" / key).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "mosaic_001.jpg").unlink()
    sources = Sources(str(folder), str(tmp_path), OPTIONS)
    sources.plan(questions[:1])
    with pytest.raises(VisualError, match=r"mosaic_001\.jpg is missing"):
        sources.load(questions[0])


@pytest.mark.parametrize(
    "options",
    [
        MosaicOptions(),
        MosaicOptions(num_frames=8, size=56, patch=14, geometry="fit", seed=3, lossless=True),
        MosaicOptions(config=dataclasses.replace(PRESETS["published"], padding="exclude")),
    ],
)
def test_options_come_back_from_their_description(options):
    back = options_of(json.loads(json.dumps(options.describe())))
    assert back.hash == options.hash
    with pytest.raises(ValueError, match="does not know"):
        options_of({**options.describe(), "colour": 1})


def test_folders_of_frames_are_cut_to_their_seconds(tmp_path):
    """Episodic Reasoning of MVBench: images at 3 a second, questions about a part."""
    frames = tmp_path / "video" / "tvqa" / "frames_fps3_hq"
    clip = frames / "friends_s01"
    clip.mkdir(parents=True)
    (frames / "fps.txt").write_text("3")
    for number in range(1, 31):
        pixels = np.full((48, 64, 3), 8 * number, np.uint8)
        Image.fromarray(pixels).save(clip / f"{number:05d}.png")
    (tmp_path / "json").mkdir()
    row = {"video": "friends_s01", "question": "Why?", "candidates": ["x", "y"], "answer": "y"}
    (tmp_path / "json" / "episodic_reasoning.json").write_text(
        json.dumps([{**row, "start": 2.0, "end": 5.0}])
    )
    questions, _ = read_questions(tmp_path)
    sources = Sources(str(tmp_path), None, OPTIONS, "frames")
    sources.plan(questions)
    visual, _ = sources.load(questions[0])
    assert visual.seconds.min() == 2.0 and visual.seconds.max() < 5.0
    shades = visual.patches.reshape(3, 16, -1).mean(axis=2).max(axis=1)  # one frame per group
    assert shades == pytest.approx([8 * 7, 8 * 11, 8 * 15], abs=3)


def test_what_asks_no_model_loads_no_torch():
    """--help, --list-videos, --merge and the report answer at once."""
    code = "import codecvit.llava.mcq.verb, codecvit.llava.report.page, sys; "
    code += "print([m for m in ('torch', 'jax', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_published_packs_pass_only_for_models_trained_on_such(made, tmp_path):
    folder, assets = made
    questions, _ = read_questions(folder)
    shutil.copytree(assets / "assets", tmp_path / "assets")
    for path in tmp_path.glob("assets/*/meta.json"):
        path.unlink()
    sources = Sources(str(folder), str(tmp_path), OPTIONS)
    assert sources.plan(questions, PUBLISHED).config_hash == PUBLISHED
    assert sources.load(questions[0])[0].seconds is None
    with pytest.raises(ValueError, match="published pack"):
        sources.plan(questions, OPTIONS.hash)
