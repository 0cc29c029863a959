"""The calls of MERV's quick start, on tiny models and made clips."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import pytest
import torch

from codecvit.codec.llava.span import Span
from codecvit.llava import TEMPLATES, load_vid
from codecvit.llava.data.examples import prompt_example
from codecvit.llava.data.visuals import image_visual, video_visual
from codecvit.llava.mcq.answer import ModelAnswerer
from codecvit.llava.merv.quick import VidLM
from codecvit.llava.prompts import Prompt, PromptBuilder
from codecvit.llava.training.data import parse_mosaics

from .conftest import make_tokenizer
from .made import moving, turns, write_image, write_video
from .several import make_several, sources, write_siglip

MOSAICS = "--num-frames 8 --num-images 2 --size 32 --patch 4"
END = 258  # <|im_end|>


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", moving(frames=30)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_model, tokenizer):
    """A model's folder, as a run leaves it."""
    folder = tmp_path_factory.mktemp("models") / "model"
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vidlm(folder):
    return load_vid(folder, mosaics=MOSAICS)


def ask(vidlm, *messages, **options):
    """A builder's prompt of questions and answers in turn."""
    builder = vidlm.get_prompt_builder(**options)
    for number, message in enumerate(messages):
        builder.add_turn(role=("human", "gpt")[number % 2], message=message)
    return builder.get_prompt()


def seen_by(vidlm, monkeypatch, *args, **kwargs):
    """The batch that a call of `generate` gives its model."""
    seen = {}

    def spy(**batch):
        seen.update(batch)
        return torch.tensor([[65]])

    with monkeypatch.context() as patch:
        patch.setattr(vidlm.model, "generate", spy)
        vidlm.generate(*args, **{"max_new_tokens": 8, **kwargs})
    return seen


# Prompts


@pytest.mark.parametrize("template", sorted(set(TEMPLATES) - {"plain"}))
def test_turns_join_to_the_prompt_and_the_prompt_is_that_of_training(template):
    builder = PromptBuilder(TEMPLATES[template])
    messages = ["What?", "A cat.", "And now?"]
    added = [
        builder.add_turn(role=("human", "gpt")[i % 2], message=m) for i, m in enumerate(messages)
    ]
    prompt = builder.get_prompt()
    assert "".join(added) == prompt == TEMPLATES[template].prompt(turns(*messages))
    assert all(m in text for m, text in zip(messages, added, strict=True))
    assert type(prompt + "") is str and isinstance(prompt, Prompt)


def test_a_system_prompt_replaces_the_templates_own():
    builder = PromptBuilder(TEMPLATES["chatml"], "Be brief.")
    assert builder.add_turn("human", "What?").startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_questions_and_answers_alternate():
    builder = PromptBuilder(TEMPLATES["chatml"])
    with pytest.raises(ValueError, match="turn 0 is from 'gpt'"):
        builder.add_turn("gpt", "A cat.")
    builder.add_turn("human", "What?")  # the refused turn is not there
    with pytest.raises(ValueError, match="turn 1 is from 'human'"):
        builder.add_turn("human", "Why?")
    builder.add_turn("gpt", "So.")
    with pytest.raises(ValueError, match="ends with a question"):
        builder.get_prompt()


# Answers


def test_an_answer_is_that_of_the_evaluation(vidlm, clip):
    prompt = ask(vidlm, "What?", "A cat.", "And now?")
    answer = vidlm.generate(clip, prompt, max_new_tokens=8)
    asked = turns("<video>\nWhat?", "A cat.", "And now?")
    visual = video_visual(clip, parse_mosaics(MOSAICS), 4)
    wanted = ModelAnswerer(vidlm.model, vidlm.tokenizer, 8).converse([(asked, [visual])])
    assert answer == wanted[0].reply.strip() != ""


def test_what_the_model_is_given(vidlm, clip, tmp_path, monkeypatch):
    """Ids as in training; pixels of the whole video, a part of it, an image, nothing."""
    look = parse_mosaics(MOSAICS)
    image = str(write_image(tmp_path / "a.jpg", 3, 24, 32))
    cases = [
        (clip, {}, [video_visual(clip, look, 4)], "<video>"),
        (clip, {"clip_start_sec": float("nan"), "clip_end_sec": float("nan")}, None, "<video>"),
        (clip, {"clip_start_sec": 0.4, "clip_end_sec": 0.8}, Span(0.4, 0.8), "<video>"),
        (clip, {"num_frames": [4]}, "--num-frames 4", "<video>"),
        (image, {}, [image_visual(image, vidlm.config.image_rule, 4)], "<image>"),
        (None, {}, [], ""),
    ]
    shown = []
    for path, options, wanted, token in cases:
        if wanted is None:
            wanted = [video_visual(clip, look, 4)]
        elif isinstance(wanted, Span):
            wanted = [video_visual(clip, look, 4, wanted)]
        elif isinstance(wanted, str):
            wanted = [video_visual(clip, parse_mosaics(f"{MOSAICS} {wanted}"), 4)]
        batch = seen_by(vidlm, monkeypatch, path, ask(vidlm, "What?"), **options)
        talk = turns(f"{token}\nWhat?" if token else "What?")
        example = prompt_example(talk, wanted, vidlm.tokenizer, vidlm.config, 500)
        np.testing.assert_array_equal(batch["input_ids"][0], example.input_ids)
        if wanted:
            np.testing.assert_array_equal(batch["patches"], wanted[0].flat())
        else:
            assert batch["patches"] is None
        shown.append(None if not wanted else wanted[0].flat().tobytes())
    assert len(set(shown)) == len(cases) - 1  # NaN bounds are no bounds


def test_placeholders_say_where_the_visual_goes(vidlm, clip, monkeypatch):
    first = seen_by(vidlm, monkeypatch, clip, ask(vidlm, "<video>\nWhat?"))["input_ids"]
    implied = seen_by(vidlm, monkeypatch, clip, ask(vidlm, "What?"))["input_ids"]
    last = seen_by(vidlm, monkeypatch, clip, ask(vidlm, "What?\n<video>"))["input_ids"]
    text = seen_by(vidlm, monkeypatch, clip, str(ask(vidlm, "<video>\nWhat?")))["input_ids"]
    assert torch.equal(first, implied) and torch.equal(first, text)
    assert first.shape == last.shape and not torch.equal(first, last)
    with pytest.raises(ValueError, match="0 <video> do not fit 1 visuals"):
        vidlm.generate(clip, str(ask(vidlm, "What?")))
    with pytest.raises(ValueError, match="1 <video> do not fit 0 visuals"):
        vidlm.generate(None, ask(vidlm, "<video>\nWhat?"))


def test_text_needs_no_placeholder_where_visuals_come_first(make_model, clip, monkeypatch):
    tokenizer = make_tokenizer("pure")
    tokenizer.bos_token = "<s>"
    model = make_model("llama", template="pure", splice="after_bos")
    vidlm = VidLM(model, tokenizer, parse_mosaics(MOSAICS))
    prompt = ask(vidlm, "What?")
    assert prompt == "<s>In: What?\nOut:"
    ids = seen_by(vidlm, monkeypatch, clip, prompt)["input_ids"]
    assert torch.equal(ids, seen_by(vidlm, monkeypatch, clip, str(prompt))["input_ids"])
    assert ids[0, 0] == tokenizer.bos_token_id and (ids[0, 1:129] == -200).all()
    assert tokenizer.decode(ids[0, 129:]) == "In: What?\nOut:"


def test_options_of_generation(vidlm, clip):
    """Each changes the answer, as it says."""
    prompt, bias = ask(vidlm, "What?"), {"sequence_bias": {(END,): 1000.0}}
    assert vidlm.generate(clip, prompt, max_new_tokens=9, **bias) == ""
    text = len(vidlm.tokenizer(str(prompt))["input_ids"]) + 1  # and the newline behind the video
    longer = vidlm.generate(clip, prompt, max_new_tokens=9, min_length=text + 4, **bias)
    greedy = vidlm.generate(clip, prompt, max_new_tokens=9)
    assert longer and greedy.startswith(longer) and longer != greedy
    assert vidlm.generate(clip, prompt, max_new_tokens=9, min_length=1, **bias) == ""
    sample = {"do_sample": True, "max_new_tokens": 9}
    assert vidlm.generate(clip, prompt, temperature=1e-4, **sample) == greedy
    torch.manual_seed(0)
    assert vidlm.generate(clip, prompt, temperature=5.0, **sample) != greedy


def test_what_cannot_be_asked(vidlm, clip, make_model, tokenizer):
    prompt = ask(vidlm, "What?")
    for options, message in [
        ({"temperature": 0.4}, "no effect without do_sample"),
        ({"do_sample": True, "temperature": 0.0}, "must be above 0"),
        ({"num_frames": [16, 16]}, r"num_frames = \[16, 16\] does not fit .* has \[8\]"),
        ({"num_frames": [65]}, "num_frames = 65"),
        ({"clip_start_sec": 2.0, "clip_end_sec": 1.0}, "must be greater than start"),
        ({"max_new_tokens": 500}, "more than max_length"),
    ]:
        with pytest.raises(ValueError, match=message):
            vidlm.generate(clip, prompt, **{"max_new_tokens": 8, **options})
    chosen = make_model()
    chosen.config.assets_hash = parse_mosaics(MOSAICS).hash
    other = VidLM(chosen, tokenizer, parse_mosaics(f"{MOSAICS} --lossless --geometry crop"))
    with pytest.raises(ValueError, match="trained on patches chosen by the options"):
        other.generate(clip, prompt)
    right = VidLM(chosen, tokenizer, parse_mosaics(MOSAICS))
    assert right.generate(clip, prompt, max_new_tokens=2) is not None
    with pytest.raises(ValueError, match="trained on patches"):
        right.generate(clip, prompt, num_frames=[4])


def test_two_encoders_see_one_clip(encoder_dir, clip, tmp_path, tokenizer, monkeypatch):
    """Patches of 8 frames and frames of their own: each number belongs to its encoder."""
    model = make_several(sources(encoder_dir, write_siglip(tmp_path / "siglip")))
    vidlm = VidLM(model, tokenizer, parse_mosaics(MOSAICS))
    assert vidlm.num_frames == [8, 4]
    prompt, span = ask(vidlm, "What?"), {"clip_start_sec": 0.4, "clip_end_sec": 0.8}
    batches = [
        seen_by(vidlm, monkeypatch, clip, prompt, **options)
        for options in ({}, {"num_frames": [8, 4]}, {"num_frames": [4, 4]}, span)
    ]
    assert all(torch.equal(batches[0][n], batches[1][n]) for n in ("patches", "frames"))
    assert not torch.equal(batches[0]["patches"], batches[2]["patches"])
    assert torch.equal(batches[0]["frames"], batches[2]["frames"])
    assert not torch.equal(batches[0]["frames"], batches[3]["frames"])
    assert not torch.equal(batches[0]["patches"], batches[3]["patches"])
    with pytest.raises(ValueError, match=r"has \[8, 4\] \(of video, image\)"):
        vidlm.generate(clip, prompt, num_frames=[8, 8])
    assert isinstance(vidlm.generate(clip, prompt, max_new_tokens=2), str)


# Where models are


def test_a_model_is_loaded_frozen_in_its_own_dtype(folder, vidlm):
    again, config = load_vid(str(folder), get_model_cfg=True)
    assert config is again.config and not again.model.training
    assert not any(p.requires_grad for p in again.model.parameters())
    assert again.num_frames == [64] and vidlm.num_frames == [8]
    assert again.to("cpu", dtype=torch.bfloat16) is again and again.model.dtype == torch.bfloat16


def test_the_script_answers(tmp_path, make_model, tokenizer, root, capsys, monkeypatch):
    model = make_model()
    model.config.text_config.max_position_embeddings = 1024  # room for 512 new tokens
    letter = tokenizer.convert_tokens_to_ids("A")
    bias = [[[letter], 50.0], [[letter, END], 100.0]]  # so that they are not drawn
    model.language_model.generation_config.sequence_bias = bias
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    image = write_image(tmp_path / "a.jpg", 3, 24, 32)
    script = str(root / "scripts" / "llava" / "quick_start.py")

    def run(*args):
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        runpy.run_path(script, run_name="__main__")

    run(tmp_path / "model", image, "What?")
    assert capsys.readouterr().out.strip() == "A"
    with pytest.raises(SystemExit, match="MODEL VIDEO"):
        run()
    with pytest.raises(SystemExit, match=r"quick_start\.py: merv-full .*(?s:.)*import merv"):
        run("merv-full", image)
