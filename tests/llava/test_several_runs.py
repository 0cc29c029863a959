"""Training and evaluation of models that read frames: rows, stages, weights by question."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from codecvit.codec.llava.cli import main
from codecvit.codec.llava.recipe import Folders
from codecvit.codec.llava.rows import RowError
from codecvit.codec.llava.span import Span
from codecvit.llava import LlavaConfig
from codecvit.llava.data.collate import collate
from codecvit.llava.data.dataset import LlavaDataset
from codecvit.llava.data.examples import Example
from codecvit.llava.data.frame_visuals import FrameRule
from codecvit.llava.data.row_visuals import Reading, read_row
from codecvit.llava.data.visuals import ImageRule
from codecvit.llava.encoders.frames import shared_frames
from codecvit.llava.mcq.answer import ModelAnswerer
from codecvit.llava.mcq.merge import read_results
from codecvit.llava.mcq.questions import Question
from codecvit.llava.mcq.runner import Asked
from codecvit.llava.mcq.sources import Look, Sources
from codecvit.llava.report.page import question_of
from codecvit.llava.report.pictures import picture_of
from codecvit.llava.training.start import load_run, start_model
from codecvit.llava.training.train import train

from .conftest import PATCH
from .made import (
    ARGUMENTS,
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
from .mcq_made import write_clip, write_merv
from .runs import metrics_of, tiny_config
from .several import COUNT, SIZE, made_visual, make_several

RULE = FrameRule(COUNT, SIZE, "squash")
PACKING = ["--num-frames", "16", "--num-images", "3", "--size", "64"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of a packed video, one to be packed on the fly, images and text; the folder."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(2):
        write_video(folder / f"v{number}.mp4", moving(number))
    made = pack_rows(folder, [video_row("v0.mp4", "v0")])
    rows = read_rows(made / "train.jsonl") + [video_row("v1.mp4", "v1")]
    for number in range(4):
        write_image(folder / f"i{number}.png", number, 20, 28)
        talk = turns("<image>\nWhat?", "A thing.")
        rows.append({"id": f"i{number}", "image": f"i{number}.png", "conversations": talk})
    rows.append({"id": "t", "conversations": turns("Say a", "a a a")})
    write_rows(made / "all.jsonl", rows)
    return folder


def folders_of(data):
    return Folders(str(data / "packed"), str(data), str(data))


@pytest.mark.parametrize("patch", [PATCH, None], ids=["patches-and-frames", "frames"])
def test_rows_are_read_with_their_frames(data, patch):
    """The packed video's own file is decoded for them, and each row shows what its text says."""
    rows = read_rows(data / "packed" / "all.jsonl")
    reading = Reading(patch, ImageRule(16), OPTIONS if patch else None, frames=RULE)
    for row, name in ((rows[0], "v0.mp4"), (rows[1], "v1.mp4")):
        talk, (visual,) = read_row(row, folders_of(data), reading)
        expected = shared_frames(data / name, COUNT, SIZE, "squash")
        assert np.array_equal(visual.frames.pixels, expected.pixels)
        assert np.array_equal(visual.frames.seconds, expected.seconds)
        places = sum(turn["value"].count("<image>") for turn in talk)
        places += sum(turn["value"].count("<video>") for turn in talk)
        assert places == (visual.num_groups if patch else 1)
        assert bool(len(visual)) == bool(patch)
        if patch:
            plain = dataclasses.replace(reading, frames=None)
            (alone,) = read_row(row, folders_of(data), plain)[1]
            assert np.array_equal(alone.patches, visual.patches) and alone.frames is None
    _, (image,) = read_row(rows[2], folders_of(data), reading)
    assert image.frames.pixels.shape == (1, SIZE, SIZE, 3) and image.frames.seconds is None


def test_a_pack_that_does_not_name_its_video_cannot_give_frames(data, tmp_path):
    row = read_rows(data / "packed" / "all.jsonl")[0]
    meta = next((data / "packed").rglob("meta.json"))
    content = meta.read_text()
    meta.unlink()
    try:
        with pytest.raises(RowError, match="does not say which video"):
            read_row(row, folders_of(data), Reading(PATCH, frames=RULE))
    finally:
        meta.write_text(content)


def test_a_part_of_a_video_has_frames_of_that_part(data):
    path = data / "v0.mp4"
    some = RULE.video(path, Span(0.2, 0.5))
    assert some.seconds.min() >= 0.2 and some.seconds.max() < 0.5
    assert RULE.video(path, Span(end_frame=4)).seconds.max() == pytest.approx(4 / 25)
    one = FrameRule(1, SIZE, "crop").video(path)
    assert one.pixels.shape == (1, SIZE, SIZE, 3)


def test_lengths_of_rows_are_those_of_their_examples(data, encoders, tokenizer):
    """About, for the text; exactly, for visual tokens."""
    from codecvit.codec.llava.recipe import Entry
    from codecvit.llava.data.mixture import Mixture

    for given, assets in ((encoders, OPTIONS), (encoders[1:], None)):
        entry = Entry("all.jsonl", image_folder=str(data), video_folder=str(data))
        mixture = Mixture([entry], str(data / "packed"), 0)
        config = make_several(given).config
        if assets:
            config.image_size = 16
        dataset = LlavaDataset(mixture, tokenizer, config, 400, assets=assets)
        examples = [dataset[i] for i in range(len(dataset))]
        assert all(isinstance(example, Example) for example in examples), examples
        for index, example in enumerate(examples):
            visual = int((example.input_ids == -200).sum())
            characters = int(mixture.shapes.characters[index])
            assert dataset.length(index) == characters // 4 + 1 + visual
        batch = collate(examples, 256)
        model = make_several(given, image_size=16 if assets else 0)
        with torch.no_grad():
            assert torch.isfinite(model(**batch).loss)
    with pytest.raises(ValueError, match="assets have no effect on a model that reads frames"):
        LlavaDataset(mixture, tokenizer, config, 400, assets=OPTIONS)


def run_fields(data, lm_dir, encoders, **changes):
    return {
        "model__encoders": tuple(encoders),
        "model__language_model": str(lm_dir),
        "model__projector": "3davg+mlp2x_gelu",
        "model__pool": (2, 2, 2),
        "data__recipe": str(data / "packed" / "all.jsonl"),
        "data__root": str(data),
        "data__max_length": 400,
        "data__mosaics": " ".join(ARGUMENTS),
        **changes,
    }


@pytest.fixture(scope="module")
def stage1(data, lm_dir, encoders, tmp_path_factory):
    """Three steps of the projector stage, at a rate that moves what is trained."""
    workdir = tmp_path_factory.mktemp("runs") / "projector"
    fields = run_fields(data, lm_dir, encoders, optim__lr=0.05, model__template="plain")
    train(tiny_config("projector", **fields, batch_size=6, micro_batch_size=3), workdir)
    return workdir


def test_a_run_trains_projectors_and_fusion_alone(stage1, encoders):
    config, model, trained = load_run(stage1)
    assert {n.rpartition(".")[0] for n in trained if "mlp" not in n} == {"projector.fusion"}
    first = start_model(config)
    before, after = first.state_dict(), model.state_dict()
    for name in before:
        assert torch.equal(before[name], after[name]) != (name in trained), name
    rows = metrics_of(stage1)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["data/failures"] == 0 for row in rows)
    told = [row for row in rows if "train/fusion/video" in row]  # a step may be text alone
    assert told
    for row in told:
        video, image = row["train/fusion/video"], row["train/fusion/image"]
        assert video + image == pytest.approx(1, abs=1e-5)
        assert (video == 0.5) == (row["step"] == 1)


def test_the_next_stage_begins_where_it_ended(stage1, data, tmp_path):
    """With its projectors and its fusion, bit for bit; and trains all of it."""
    fields = {"init": str(stage1), "data__recipe": str(data / "packed" / "all.jsonl")}
    fields |= {"data__root": str(data), "data__mosaics": " ".join(ARGUMENTS)}
    fields |= {"data__max_length": 400, "optim__vision_tower_lr": 1e-4}
    config = tiny_config("sft", **fields)
    start, end = start_model(config), load_run(stage1)[1]
    assert start.config.template == "chatml"
    state, expected = start.state_dict(), end.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert state["projector.fusion.vector"].any()
    train(config, tmp_path / "sft")
    _, _, trained = load_run(tmp_path / "sft")
    for part in ("vision_tower.video", "vision_tower.image", "projector.fusion", "language_model"):
        assert any(name.startswith(part) for name in trained)
    saved = LlavaConfig.from_pretrained(tmp_path / "sft" / "model")
    assert saved.fusion == "score" and [e.name for e in saved.encoders] == ["video", "image"]


def test_a_run_goes_on_with_the_encoders_it_began_with(stage1, data, lm_dir, encoders):
    """Their folders may move; what they see may not change."""
    fields = run_fields(data, lm_dir, [encoders[0], encoders[1].replace("@4", "@2")])
    fields |= {"optim__lr": 0.05, "model__template": "plain", "batch_size": 6}
    with pytest.raises(ValueError, match="the encoders are not the same"):
        train(tiny_config("projector", **fields, micro_batch_size=3), stage1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__encoder": "folder"}, "config.model.encoders is given"),
        ({"model__encoders": (), "model__encoder": "x", "model__resize": "crop"}, "it is for"),
        ({"init": "folder", "model__language_model": ""}, "config.init gives both"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message, data, lm_dir, encoders):
    with pytest.raises(ValueError, match=message):
        tiny_config("projector", **run_fields(data, lm_dir, encoders, **changes))


def test_frames_alone_need_no_mosaics(data, lm_dir, encoders, tmp_path):
    """Neither to train on raw videos, nor to be asked about them."""
    fields = run_fields(data, lm_dir, encoders[1:], data__mosaics="", model__image_size=0)
    train(tiny_config("projector", **fields), tmp_path / "run")
    rows = metrics_of(tmp_path / "run")
    assert len(rows) == 3 and not any(name.startswith("train/fusion") for name in rows[0])
    bench = write_merv(tmp_path / "bench", questions=2)
    write_clip(bench / "videos" / "video_10336.mp4")
    model, out = tmp_path / "run" / "model", tmp_path / "out"
    arguments = ["eval", "--model", model, "--benchmark", bench, "--out", out]
    arguments += ["--dtype", "float32", "--device", "cpu", "--strategy", "loglik"]
    assert main([*map(str, arguments)]) == 0
    run, records = read_results(out)
    assert [r["source"] for r in records] == ["video"] * 2
    assert all(r["status"] == "ok" and r["fusion"] == {"image": 1.0} for r in records)
    assert run["visuals"]["shared_frames"] == {"count": COUNT, "size": SIZE, "resize": "squash"}
    assert json.loads((out / "summary.json").read_text())["visuals"]["video"] == 2
    picture = picture_of(run, question_of(records[0]), "video", 3)
    assert picture.samples == COUNT and picture.read_KRC.all()
    rule = FrameRule(**run["visuals"]["shared_frames"])
    shown = rule.video(bench / "videos" / "video_10336.mp4").pixels
    assert np.array_equal(picture.frames_KHW3, shown[[0, 2, 3]])
    assert main([*map(str, arguments), "--assets", str(tmp_path)]) == 2


@pytest.fixture(scope="module")
def saved(encoders, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_several(encoders).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("strategy", ["letter", "loglik"])
def test_an_evaluation_tells_the_weights_of_each_question(saved, tmp_path, capsys, strategy):
    bench = write_merv(tmp_path / "bench", questions=4, videos=2)
    write_clip(bench / "videos" / "video_10336.mp4")  # the other one is missing
    out = tmp_path / "out"
    arguments = ["eval", "--model", saved, "--benchmark", bench, "--out", out, "--on-miss", "pack"]
    arguments += ["--strategy", strategy, "--dtype", "float32", "--device", "cpu", *PACKING]
    assert main([*map(str, arguments), "--batch-size", "2"]) == 0
    _, records = read_results(out)
    assert [r["status"] for r in records][1::2] == ["decode_error"] * 2
    assert all("fusion" not in r for r in records[1::2])
    for record in records[::2]:
        assert record["status"] in ("ok", "unparsed") and record["source"] == "packed"
        assert record["fusion"].keys() == {"video", "image"}
        assert sum(record["fusion"].values()) == pytest.approx(1, abs=1e-5)
        assert record["fusion"] == records[0]["fusion"]  # one video, and the question is not asked
    summary = json.loads((out / "summary.json").read_text())
    assert summary["fusion"] == pytest.approx(records[0]["fusion"])
    assert "weights of the encoders" in capsys.readouterr().out
    assert main(["report", str(out), "--out", str(tmp_path / "page.html"), "--pictures", "0"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert f'"fusion":{json.dumps(records[0]["fusion"], separators=(",", ":"))}' in page


def test_answers_do_not_depend_on_their_batch(saved):
    answerer = ModelAnswerer.load(saved, "cpu", "float32", 4)
    items = [Asked(f"What {seed}?", made_visual(seed), "AB") for seed in range(3)]
    for ask in (answerer.generate, answerer.loglik):
        alone, together = [ask([item])[0] for item in items], ask(items)
        for one, other in zip(alone, together, strict=True):
            assert one.reply == other.reply
            assert one.fusion == pytest.approx(other.fusion, abs=1e-5)
        assert len({a.fusion["image"] for a in together}) == 3


@pytest.mark.parametrize("way", ["generate", "loglik"])
def test_an_answer_and_its_weights_come_of_one_pass(saved, way):
    """Nothing is projected or fused a second time to tell what the encoders count for."""
    answerer, calls = ModelAnswerer.load(saved, "cpu", "float32", 3), []
    projector = answerer._model.projector
    parts = {"all": projector, "fusion": projector.fusion, **projector.encoders}
    for name, part in parts.items():
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    answers = getattr(answerer, way)([Asked("What?", made_visual(n), "AB") for n in range(2)])
    assert all(answer.fusion.keys() == {"video", "image"} for answer in answers)
    assert sorted(calls) == sorted(parts)


def test_a_question_shows_frames_of_its_part(data):
    question = Question(0, "q", "t", "What?", ("a", "b"), 0, "v0.mp4", Span(0.2, 0.5))
    folder = str(data)
    for patches in (True, False):
        look = Look(patches, RULE)
        found = Sources(folder, None, OPTIONS, "pack", PATCH if patches else None, look=look)
        found.plan([question])
        visual, source = found.load(question)
        assert source == ("packed" if patches else "video")
        assert visual.frames.seconds.min() >= 0.2 and visual.frames.seconds.max() < 0.5
        assert bool(len(visual)) == patches
