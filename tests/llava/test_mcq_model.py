"""A real (tiny, random) model: scores are its own, batches change nothing, the verb runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from codecvit.codec.llava.cli import main
from codecvit.llava import VISUAL_TOKEN
from codecvit.llava.data.collate import collate
from codecvit.llava.data.examples import prompt_example
from codecvit.llava.data.visuals import Visual
from codecvit.llava.mcq.answer import ModelAnswerer, fingerprint
from codecvit.llava.mcq.merge import read_results
from codecvit.llava.mcq.runner import Asked

from .conftest import make_visual
from .mcq_made import write_clip, write_merv

PACKING = ["--num-frames", "16", "--num-images", "3", "--size", "64"]


def asked(seed, prompt="What moves?\nA. x\nB. y\nC. z", options="ABC", keep=20):
    patches, positions, grid = make_visual(seed, frames=3, keep=keep)
    return Asked(
        prompt,
        Visual(
            patches.view(-1, 4, 4, 3).numpy(),
            positions.numpy().astype(np.int32),
            np.zeros(len(patches), np.int32),
            None,
            grid,
        ),
        options,
    )


@pytest.fixture(scope="module")
def answerer(make_model, tokenizer):
    return ModelAnswerer(make_model(), tokenizer, max_new_tokens=6)


def prompt_batch(answerer, item):
    """Arguments of the model for the bare prompt of a question."""
    turns = [{"from": "human", "value": "<video>\n" + item.prompt}]
    model = answerer._model
    example = prompt_example(turns, [item.visual], answerer._tokenizer, model.config, 512)
    return collate([example], 256)


@torch.no_grad()
def by_hand(answerer, item, text):
    """log p(text | prompt), one token after the other, nothing shared."""
    batch = prompt_batch(answerer, item)
    total = 0.0
    for token in answerer._tokenizer.encode(text, add_special_tokens=False):
        logits = answerer._model(**{**batch, "labels": None}).logits[0, -1]
        total += logits.log_softmax(-1)[token].item()
        more = torch.tensor([[token]])
        batch["input_ids"] = torch.cat([batch["input_ids"], more], 1)
        batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(more)], 1)
    return total


@pytest.mark.parametrize("options", ["ABC", "ABCDE", ("A", "BB", "Bx"), ("AxA", "BxA")])
def test_scores_are_the_models_log_probabilities(answerer, options):
    item = asked(1, options=options)
    found = answerer.loglik([item])[0]
    expected = [by_hand(answerer, item, text) for text in options]
    if options == ("AxA", "BxA"):  # what all end in is left out
        expected = [by_hand(answerer, item, text) for text in ("A", "B")]
    assert found.scores == pytest.approx(expected, abs=1e-4)
    assert len(set(found.scores)) == len(options)


def test_an_answer_does_not_depend_on_its_batch(answerer):
    items = [
        asked(1),
        asked(2, "A longer question than the one before?", "ABCD", keep=31),
        asked(3, options=("A", "BB"), keep=7),
        asked(1),
    ]
    for ask in (answerer.loglik, answerer.generate):
        alone = [ask([item])[0] for item in items]
        together = ask(items)
        for a, b in zip(alone, together, strict=True):
            assert (a.visual_tokens, a.text_tokens, a.reply) == (
                b.visual_tokens,
                b.text_tokens,
                b.reply,
            )
            if a.scores is not None:
                assert a.scores == pytest.approx(b.scores, abs=1e-4)
        assert alone[0] == alone[3]


def test_scores_depend_on_what_is_seen(answerer):
    first, second = (answerer.loglik([asked(seed)])[0].scores for seed in (1, 2))
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 1e-4


def test_tokens_are_counted(answerer):
    item = asked(1, keep=20)
    ids = prompt_batch(answerer, item)["input_ids"][0]
    for ask in (answerer.loglik, answerer.generate):
        found = ask([item])[0]
        assert found.visual_tokens == 20 == int((ids == VISUAL_TOKEN).sum())
        assert found.text_tokens == len(ids) - 20


def test_generation_is_greedy_and_stops_at_the_end_of_turn(answerer, make_model, tokenizer):
    # Whatever the language model's defaults say
    model = make_model()
    model.language_model.generation_config.update(do_sample=True, temperature=9.0, top_k=3)
    sampling = ModelAnswerer(model, tokenizer, max_new_tokens=6)
    items = [asked(seed) for seed in range(3)]
    assert sampling.generate(items) == answerer.generate(items)
    # A model that says B and ends its turn
    end = tokenizer.encode("<|im_end|>", add_special_tokens=False)[0]
    (letter,) = tokenizer.encode("B", add_special_tokens=False)

    sequence = iter([letter, end, letter, letter, letter, letter])

    def forward(*args, **kwargs):
        out = inner(*args, **kwargs)
        out.logits[..., next(sequence)] = 99.0
        return out

    inner = model.language_model.forward
    model.language_model.forward = forward
    assert ModelAnswerer(model, tokenizer, 6).generate([items[0]])[0].reply == "B"


def test_a_prompt_beyond_the_context_is_this_questions_error(answerer):
    with pytest.raises(ValueError, match="more than max_length"):
        answerer.generate([asked(1, "x" * 600)])
    with pytest.raises(ValueError, match="at least 1"):
        ModelAnswerer(answerer._model, answerer._tokenizer, 0)


def test_a_tokenizer_of_another_template_is_refused(make_model, tokenizer_for):
    with pytest.raises(ValueError, match="belongs to another template"):
        ModelAnswerer(make_model(), tokenizer_for("llama2"))


@pytest.fixture(scope="module")
def saved(make_model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_model(pool_level=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_fingerprint_tells_models_apart(saved, make_model, tokenizer, tmp_path):
    other = make_model(pool_level=2)
    with torch.no_grad():
        next(other.projector.parameters()).add_(1e-3)
    other.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint(saved) != fingerprint(tmp_path)
    make_model(pool_level=2).save_pretrained(tmp_path)
    assert fingerprint(saved) == fingerprint(tmp_path)


@pytest.mark.parametrize("strategy", ["letter", "loglik"])
def test_the_verb_from_files_to_summary(saved, tmp_path, capsys, strategy):
    bench = write_merv(tmp_path / "bench", questions=9, videos=2)
    write_clip(bench / "videos" / "video_10336.mp4")  # the other one is missing
    out = tmp_path / "out"
    arguments = ["eval", "--model", saved, "--benchmark", bench, "--out", out, "--on-miss", "pack"]
    arguments += ["--strategy", strategy, "--dtype", "float32", "--device", "cpu", *PACKING]
    for part in range(4):
        assert main([*map(str, arguments), "--chunk", f"{part}/4"]) == 0
    printed = capsys.readouterr().out
    assert "no answer yet" in printed and "complete" in printed and "packed 2" in printed
    run, records = read_results(out)
    assert [r["status"] for r in records][1::2] == ["decode_error"] * 4
    assert all(r["status"] in ("ok", "unparsed") for r in records[::2])
    assert run["model"]["template"] == "chatml" and run["model"]["dtype"] == "float32"
    assert "<|im_start|>user\n<video>\n{prompt}<|im_end|>" in run["model"]["conversation"]
    assert run["visuals"]["config_hash"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["coverage"] == pytest.approx(5 / 9)
    assert summary["visuals"] == {"asset": 0, "packed": 5, "frames": 0, "none": 4}
    if strategy == "loglik":
        assert all(len(r["scores"]) == 3 for r in records[::2])


def test_a_model_states_the_options_it_was_trained_with(saved, tmp_path, capsys):
    config = json.loads((saved / "config.json").read_text())
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "assets_hash": "0123456789abcdef"}))
    bench = write_merv(tmp_path / "bench", questions=2)
    arguments = ["eval", "--model", tmp_path, "--benchmark", bench, "--out", tmp_path / "out"]
    arguments += ["--on-miss", "pack", "--device", "cpu", *PACKING]
    assert main([*map(str, arguments)]) == 2
    assert "0123456789abcdef: the model's training" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_usage_is_told(tmp_path, capsys):
    bench = write_merv(tmp_path / "bench", questions=2)
    for arguments, message in (
        (["--benchmark", bench, "--out", tmp_path / "o"], "--model is needed"),
        (["--merge"], "--out is needed"),
    ):
        with pytest.raises(SystemExit):
            main(["eval", *map(str, arguments)])
        assert message in capsys.readouterr().err
    common = ["--benchmark", bench, "--out", tmp_path / "o", "--model", tmp_path / "none"]
    for arguments, message in (
        ([*common, "--chunk", "4/4"], "0 <= i < N"),
        (common, "without assets every video is a miss"),
        ([*common, "--on-miss", "pack"], "holds no config.json"),
        (["--merge", "--out", tmp_path / "o"], "holds no run.json"),
        ([*common, "--format", "mvbench", "--on-miss", "pack"], "holds no questions"),
    ):
        assert main(["eval", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
