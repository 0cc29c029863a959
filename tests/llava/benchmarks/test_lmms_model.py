"""Requests of lmms-eval are answered as by our own runner, whatever they show, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from codecvit.codec.llava.cli import main
from codecvit.llava.mcq.merge import read_results
from codecvit.llava.mcq.parse import strategy_named
from codecvit.llava.mcq.questions import read_questions

from ..several import make_several
from .made import MOSAICS, SMALL, ask, results, video_docs


def test_replies_are_those_of_our_own_runner(make, bench, saved, tmp_path):
    out = tmp_path / "own"
    arguments = ["eval", "--model", saved, "--benchmark", bench, "--out", out]
    arguments += ["--assets", bench / "made", "--dtype", "float32", "--device", "cpu"]
    assert main([*map(str, arguments), "--max-new-tokens", "6", *MOSAICS]) == 0
    _, own = read_results(out)
    docs = video_docs(bench)
    assert ask(make(), docs) == [record["reply"] for record in own]
    summary, records = results(tmp_path / "results")
    assert [(r["visual_tokens"], r["text_tokens"]) for r in records] == [
        (r["visual_tokens"], r["text_tokens"]) for r in own
    ]
    assert summary["tasks"]["mine"]["sources"] == {"hit": 4}
    assert summary["visuals"]["videos"] == {"hit": 2}
    assert summary["tasks"]["mine"]["visual_tokens"] == pytest.approx(
        np.mean([r["visual_tokens"] for r in own]), abs=0.01
    )


def test_a_model_of_several_encoders_gets_its_frames(make, bench, encoders, tokenizer, tmp_path):
    """Replies are those of our own runner, images have a frame; frames alone are refused."""
    for name, sources in (("two", encoders), ("frames", encoders[1:])):
        make_several(sources).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    out = tmp_path / "own"
    arguments = ["eval", "--model", tmp_path / "two", "--benchmark", bench, "--out", out]
    arguments += ["--assets", bench / "made", "--dtype", "float32", "--device", "cpu"]
    assert main([*map(str, arguments), "--max-new-tokens", "6", *MOSAICS]) == 0
    docs = video_docs(bench)
    model = make(pretrained=str(tmp_path / "two"))
    assert ask(model, docs) == [record["reply"] for record in read_results(out)[1]]
    picture = Image.new("RGB", (16, 16))
    (reply,) = ask(model, [{"show": [picture], "text": "What?"}])
    assert isinstance(reply, str)
    assert results(tmp_path / "results")[1][-1]["status"] == "ok"
    with pytest.raises(SystemExit):
        make(pretrained=str(tmp_path / "frames"))


def test_videos_images_and_text_in_one_batch_are_answered_as_alone(make, bench, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    video = video_docs(bench)[0]["show"]
    docs = [
        {"show": video, "text": "What moves?"},
        {"show": None, "text": "Say something."},
        {"show": [picture], "text": "What is it?"},
        {"show": [picture, picture], "text": "<image> or <image>?"},
        {"show": str(tmp_path / "a.png"), "text": "What is it?"},
        {"show": [], "text": "Say something else."},
        {"show": video[0], "text": "What moves?"},  # a bare path, as TemporalBench has it
    ]
    together = ask(make(batch_size=4), docs)
    assert together == [ask(make(results="none"), [doc])[0] for doc in docs]
    assert together[0] == together[6] and together[2] == together[4]
    _, records = results(tmp_path / "results")
    assert [r["sources"] for r in records] == [
        *(["hit"], ["text"], ["image"], ["image", "image"], ["image"], ["text"], ["hit"])
    ]
    assert records[1]["visual_tokens"] == 0 < records[2]["visual_tokens"]
    assert records[3]["visual_tokens"] == 2 * records[2]["visual_tokens"]


def test_loglikelihood_is_the_models(make, bench):
    docs = [{**doc, "target": f" {x}"} for doc in video_docs(bench)[:1] for x in ("A", "B", "AB")]
    model = make(batch_size=3)
    scores = ask(model, docs, "loglikelihood")
    asked = [
        *(model._answerer, strategy_named("letter")),
        read_questions(str(bench), None)[0][0],
        model._shown.load(docs[0]["show"][0])[0],
    ]
    answerer, strategy, question, visual = asked
    from codecvit.llava.mcq.runner import Asked

    expected = answerer.loglik([Asked(strategy.prompt(question), visual, "AB")])[0].scores
    assert [scores[0][0], scores[1][0]] == pytest.approx(expected, abs=1e-4)
    assert scores[2][0] < scores[0][0]  # one more letter
    # Greedy generation says what has the highest probability, and only that is marked.
    reply = ask(model, docs[:1], max_new_tokens=1)[0]
    if reply.strip():
        assert ask(model, [{**docs[0], "target": reply}], "loglikelihood")[0][1]
    assert sum(greedy for _, greedy in scores[:2]) <= 1


def test_broken_videos_and_broken_requests_are_counted_not_hidden(make, bench, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    docs = [
        {"show": [str(tmp_path / "broken.mp4")], "text": "What?"},
        {"show": None, "text": "x" * 2000},
        {"show": None, "text": "Say something."},
    ]
    model = make(assets=None, on_miss="pack", batch_size=3, **SMALL)
    replies = ask(model, docs)
    assert replies[:2] == ["", ""]
    summary, records = results(tmp_path / "results")
    assert [r["status"] for r in records] == ["decode_error", "gen_error", "ok"]
    assert summary["tasks"]["mine"]["statuses"] == {"decode_error": 1, "gen_error": 1, "ok": 1}
    assert "broken.mp4" in records[0]["error"] and "max_length" in records[1]["error"]
    assert "broken.mp4" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="21 times"):
        ask(model, [docs[1]] * 21)


def test_what_a_task_asks_for_is_done_or_refused(make, bench):
    model, docs = make(results="none"), [{"show": None, "text": "Say something."}]
    whole = ask(model, docs, max_new_tokens=20)[0]
    assert (
        ask(model, docs, max_new_tokens=20, until=[whole[3]])[0] == whole[: whole.index(whole[3])]
    )
    greedy = ask(model, docs, temperature=0, top_p=1.0, num_beams=1, do_sample=False)
    assert greedy == ask(model, docs) == ask(model, docs, temperature=0.7, do_sample=False)
    for options, message in (
        ({"do_sample": True}, "replies are greedy"),
        ({"num_beams": 5}, "num_beams = 5, but replies are greedy"),
        ({"temperature": 0.7}, "temperature = 0.7, but replies are greedy"),
        ({"num_frames": 5}, "num_frames, unknown here"),
    ):
        with pytest.raises(SystemExit, match=message):
            ask(model, docs, **options)
    with pytest.raises(SystemExit, match="shows a dict"):
        ask(model, [{"show": [{"array": 0}], "text": "Hear?"}])
    with pytest.raises(SystemExit, match="several rounds"):
        model.generate_until_multi_round([])
    for options in ({"batch_size": "auto"}, {"batch_size": 0}, {"max_batch_size": 4}):
        with pytest.raises(SystemExit, match="give batch_size alone"):
            make(**options)
