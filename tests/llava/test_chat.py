"""A conversation: what is streamed is what is generated, and prompts are those of training."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
import torch

from codecvit.codec.llava.cli import main
from codecvit.codec.llava.options import MosaicOptions
from codecvit.llava import VISUAL_TOKEN
from codecvit.llava.chat.session import Conversation, Decoding, _Tokens, stream
from codecvit.llava.chat.sight import Reader, Sight
from codecvit.llava.data.visuals import Visual, video_visual
from codecvit.llava.mcq.answer import ModelAnswerer
from codecvit.llava.templates import TEMPLATES

from .conftest import make_visual
from .made import write_image
from .mcq_made import write_clip
from .several import make_several, sources, write_siglip

PACKING = ["--num-frames", "8", "--num-images", "2", "--size", "32"]
OPTIONS = MosaicOptions(num_frames=8, num_images=2, size=32, patch=4)


def sight(seed=1, source="packed", keep=20):
    patches, positions, grid = make_visual(seed, frames=3, keep=keep)
    visual = Visual(
        patches.view(-1, 4, 4, 3).numpy(),
        positions.numpy().astype(np.int32),
        np.zeros(len(patches), np.int32),
        None,
        grid,
    )
    return Sight("clip.mp4", visual, source)


@pytest.fixture(scope="module")
def answerer(make_model, tokenizer):
    return ModelAnswerer(make_model(), tokenizer, max_new_tokens=12)


@pytest.fixture
def scripted(make_model, tokenizer):
    """text, end of turn behind it or not -> an answerer that says it, whatever it is asked."""

    def make(text, ends=True):
        model = make_model()
        said = tokenizer.encode(text, add_special_tokens=False) + [258] * ends
        place = {"next": 0}

        def forward(*args, **kwargs):
            out = inner(*args, **kwargs)
            out.logits[:] = -99.0
            out.logits[..., said[place["next"] % len(said)]] = 99.0
            place["next"] += 1
            return out

        inner, model.language_model.forward = model.language_model.forward, forward
        return ModelAnswerer(model, tokenizer)

    return make


def turns_of(shown, question):
    return [{"from": "human", "value": f"{shown.opening}{question}"}]


@pytest.mark.parametrize("source", ["packed", "image"])
def test_the_stream_is_what_generate_gives(answerer, tokenizer, monkeypatch, source):
    shown, limit = sight(source=source), Decoding(max_new_tokens=12)
    streamed, made = [], []
    put, generate = _Tokens.put, answerer._model.generate
    monkeypatch.setattr(
        _Tokens,
        "put",
        lambda self, ids: (streamed.append(ids.reshape(-1).tolist()), put(self, ids)),
    )
    turns = turns_of(shown, "What moves?")
    texts = list(stream(answerer, turns, [shown.visual], limit, threading.Event()))
    monkeypatch.setattr(
        answerer._model, "generate", lambda **kw: made.append(generate(**kw)) or made[-1]
    )
    (whole,) = answerer.converse([(turns, [shown.visual])], 12)
    assert streamed[0] == []  # the prompt, which is made of embeddings
    assert sum(streamed, []) == made[0][0].tolist()
    assert texts[-1] == whole.reply == tokenizer.decode(made[0][0], skip_special_tokens=True)
    assert len(texts) > 3 and all(whole.reply.startswith(text) for text in texts)
    assert len(set(texts)) == len(texts)


def test_letters_come_whole(scripted):
    conversation = Conversation(scripted("é 漢字, ja\n\nné "), sight())
    texts = list(conversation.ask("?", Decoding(40)))
    assert texts == [
        *("é", "é 漢", "é 漢字", "é 漢字,", "é 漢字, j", "é 漢字, ja", "é 漢字, ja\n\nn"),
        *("é 漢字, ja\n\nné", "é 漢字, ja\n\nné "),
    ]
    assert conversation.turns[-1]["value"] == texts[-1].strip()


@pytest.mark.parametrize("template", ["chatml", "vicuna", "llama2", "phi3"])
def test_prompts_of_later_turns_are_the_templates(make_model, tokenizer_for, template, monkeypatch):
    tokenizer = tokenizer_for(template)
    answerer = ModelAnswerer(make_model(template=template), tokenizer)
    prompts = []
    generate = answerer._model.generate

    def spy(**arguments):
        prompts.append(arguments["input_ids"][0].tolist())
        return generate(**arguments)

    monkeypatch.setattr(answerer._model, "generate", spy)
    conversation = Conversation(answerer, sight())
    told = []
    for question in ("What moves?", "Where to?", "Why?"):
        *_, reply = conversation.ask(f" {question}\n", Decoding(max_new_tokens=5))
        shown = "" if told else "<video>\n"
        told.append({"from": "human", "value": shown + question})
        before, _, after = TEMPLATES[template].prompt(told).partition("<video>")
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in (before, after)]
        assert prompts[-1] == ids[0] + [VISUAL_TOKEN] * 20 + ids[1]
        assert conversation.last.visual_tokens == 20
        assert conversation.last.text_tokens == len(ids[0]) + len(ids[1])
        told.append({"from": "gpt", "value": reply.strip()})
        assert conversation.turns == told
    assert conversation.said()[0]["value"] == "What moves?"


def test_an_answer_depends_on_what_was_said_before(answerer):
    conversation, fresh = Conversation(answerer, sight()), Conversation(answerer, sight())
    list(conversation.ask("What moves?", Decoding(24)))
    later = [*conversation.ask("And then?", Decoding(24))][-1]
    assert later != [*fresh.ask("And then?", Decoding(24))][-1]


def test_an_answer_that_is_cut_short_stays_as_far_as_it_came(scripted):
    threads = threading.active_count()
    conversation = Conversation(scripted("abc ", ends=False), sight())
    answer = conversation.ask("Long?", Decoding(max_new_tokens=400))
    next(answer)
    conversation.stop()
    *_, last = answer
    assert 1 <= len(last) < 40 and conversation.turns[-1]["value"] == last.strip()
    answer = conversation.ask("Again?", Decoding(max_new_tokens=300))
    first = next(answer)
    with pytest.raises(ValueError, match="still being answered"):
        next(conversation.ask("Meanwhile?"))
    answer.close()  # as when the reader goes away
    assert conversation.turns[-1]["value"] == first.strip() and len(conversation.turns) == 4
    assert threading.active_count() == threads


def test_a_question_that_fails_leaves_no_trace(answerer, monkeypatch):
    conversation = Conversation(answerer, sight())
    for question, message in (
        ("  ", "is empty"),
        ("What is <image>?", "<image>, which stands for what is shown"),
        ("x" * 600, r"are more than max_length = 504,.*show less"),
    ):
        with pytest.raises(ValueError, match=message):
            list(conversation.ask(question, Decoding(max_new_tokens=8)))
    list(conversation.ask("What moves?", Decoding(4)))
    with pytest.raises(ValueError, match="begin a new conversation"):
        list(conversation.ask("x" * 450, Decoding(8)))

    def fails(**arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(answerer._model, "generate", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(conversation.ask("And?", Decoding(8)))
    assert len(conversation.turns) == 2
    monkeypatch.undo()
    assert list(conversation.ask("And?", Decoding(2)))


def test_every_number_of_decoding_counts(answerer):
    def said(**fields):
        torch.manual_seed(3)
        conversation = Conversation(answerer, sight())
        return [*conversation.ask("What moves?", Decoding(**{"max_new_tokens": 12, **fields}))][-1]

    greedy = said()
    assert said() == greedy
    assert said(temperature=5.0) != greedy
    assert said(temperature=5.0, top_p=1e-9) == greedy  # the likeliest token alone
    assert len(said(max_new_tokens=3)) < len(greedy)
    for fields in ({"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            Decoding(**fields)


def test_what_is_read_is_what_training_reads(answerer, tmp_path):
    clip, image = write_clip(tmp_path / "clip.mp4"), write_image(tmp_path / "a.png", 3, 20, 28)
    reader = Reader(answerer, OPTIONS)
    video = reader.read(clip)
    expected = video_visual(clip, OPTIONS, 4)
    for name in ("patches", "positions", "groups", "seconds"):
        assert np.array_equal(getattr(video.visual, name), getattr(expected, name)), name
    assert video.opening == "<video>\n" and "packed now), 128 patches of 4 x 4" in video.describe()
    picture = reader.picture(video, 64)
    rows, columns = slice(1, 7), slice(0, 8)  # letterbox: 24 of 32 pixels are picture
    read = np.zeros((8, 8, 8), bool)
    slots = np.unique(expected.positions[:, 0])
    read[np.searchsorted(slots, expected.positions[:, 0]), *expected.positions[:, 1:].T] = True
    assert len(slots) == 8 and np.array_equal(picture.read_KRC, read[:, rows, columns])
    assert picture.frames_KHW3.shape == (8, 24, 32, 3)
    still = reader.read(image)
    assert still.opening == "<image>\n" and still.visual.grid == (5, 7)
    picture = reader.picture(still, 64)
    assert picture.read_KRC.all() and picture.frames_KHW3.shape == (1, 20, 28, 3)
    whole = Reader(answerer, OPTIONS, on_miss="frames").read(clip)
    assert "of 2 frames" in whole.describe()


def test_assets_are_found_and_options_must_be_those_of_training(answerer, tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "videos" / "clip.mp4")
    (tmp_path / "list.jsonl").write_text('{"video": "videos/clip.mp4"}\n')
    made = ["--jsonl", tmp_path / "list.jsonl", "--root", tmp_path, "--out", tmp_path / "assets"]
    assert main(["assets", *map(str, made), "--workers", "0", "--patch", "4", *PACKING]) == 0
    folder, root = str(tmp_path / "assets"), str(tmp_path)
    found = Reader(answerer, OPTIONS, folder, root, "error").read(clip)
    assert found.source == "asset"
    assert np.array_equal(found.visual.patches, Reader(answerer, OPTIONS).read(clip).visual.patches)
    with pytest.raises(ValueError, match="have no assets"):
        Reader(answerer, OPTIONS, folder, None, "error").read(clip)  # keys of another root
    with pytest.raises(ValueError, match="does not exist"):
        Reader(answerer, OPTIONS).read(tmp_path / "none.mp4")
    monkeypatch.setattr(answerer.config, "assets_hash", "0123456789abcdef", raising=False)
    with pytest.raises(ValueError, match="0123456789abcdef: the model's training"):
        Reader(answerer, OPTIONS).read(clip)


def test_models_of_several_encoders_and_of_frames_alone(encoder_dir, tokenizer, tmp_path):
    both = sources(encoder_dir, write_siglip(tmp_path / "siglip"))
    clip, image = write_clip(tmp_path / "clip.mp4"), write_image(tmp_path / "a.png", 3, 20, 28)
    for encoders, told in ((both, "of 8 frames and 4 whole"), (both[1:], "video, 4 whole")):
        answerer = ModelAnswerer(make_several(encoders), tokenizer)
        reader = Reader(answerer, OPTIONS)
        for path in (clip, image):
            shown = reader.read(path)
            picture = reader.picture(shown, 3)
            conversation = reader.converse(shown)
            *_, reply = conversation.ask("What moves?", Decoding(9))
            turns = turns_of(shown, "What moves?")
            assert reply == answerer.converse([(turns, [shown.visual])], 9)[0].reply
        assert picture.frames_KHW3.shape[0] == 1 and picture.read_KRC.all()
        assert conversation.last.fusion.keys() >= {"image"}
        shown = reader.read(clip)
        assert told in shown.describe()
        picture = reader.picture(shown, 3)
        assert len(picture.frames_KHW3) == 3 and picture.read_KRC.all() == (encoders != both)


@pytest.fixture(scope="module")
def saved(make_model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_model(pool_level=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def chat(saved, tmp_path, capsys):
    """(words of the command) -> status, what it printed, what it complained of."""
    clip = write_clip(tmp_path / "clip.mp4")

    def run(*words, model=saved, visual=clip):
        options = ["--dtype", "float32", "--device", "cpu", "--patch", "4", *PACKING]
        command = [model, visual, *options, "--max-new-tokens", 9, *words]
        status = main(["chat", *map(str, command)])
        return (status, *capsys.readouterr())

    return run


def test_the_verb_prints_the_answer(chat, saved, tmp_path):
    answerer = ModelAnswerer.load(saved, "cpu", "float32")
    shown = Reader(answerer, OPTIONS).read(tmp_path / "clip.mp4")
    conversation = Conversation(answerer, shown)
    first, second = ([*conversation.ask(q, Decoding(9))][-1] for q in ("What moves?", "Where?"))
    status, out, err = chat("What moves?")
    assert (status, out) == (0, f"{first}\n")
    assert "128 patches of 4 x 4 pixels read of 8 frames" in err and "visual" in err
    status, out, _ = chat("What moves?", "Where?")
    assert (status, out) == (0, f"> What moves?\n{first}\n\n> Where?\n{second}\n")
    assert first != second


def test_the_verb_reads_questions_line_by_line(chat, monkeypatch):
    lines = "What moves?\n\nWhere?\n/new\nWhat moves?\n/quit\nNever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    status, out, _ = chat()
    first, alone = chat("What moves?")[1], chat("Where?")[1]
    assert status == 0 and out.startswith(first) and out.endswith(first)
    assert out[len(first) : -len(first)] not in ("", alone)
    monkeypatch.setattr("sys.stdin", io.StringIO("/sing\n<video>\nWhat moves?\n"))
    status, out, err = chat()
    assert status == 1 and out == first  # one could not be answered, the next one was
    assert "no command '/sing'" in err and "stands for what is shown" in err


def test_the_verb_tells_what_is_wrong(chat, tmp_path):
    (tmp_path / "no.mp4").write_text("no video")
    (tmp_path / "no.png").write_text("no image")
    for words, model, visual, status, message in (
        ([], tmp_path, tmp_path / "clip.mp4", 2, "holds no config.json"),
        ([], None, tmp_path / "none.mp4", 2, "none.mp4 does not exist"),
        ([], None, tmp_path / "no.mp4", 2, "no.mp4: cannot be opened as a video"),
        ([], None, tmp_path / "no.png", 2, "no.png: cannot be read as an image"),
        (["--temperature", "11"], None, tmp_path / "clip.mp4", 2, "temperature = 11"),
        (["--on-miss", "error"], None, tmp_path / "clip.mp4", 2, "every video is a miss"),
        (["<image>"], None, tmp_path / "clip.mp4", 1, "which stands for what is shown"),
    ):
        where = {"visual": visual} if model is None else {"model": model, "visual": visual}
        found, out, err = chat(*(words or ["What?"]), *(["What?"] if words else []), **where)
        assert (found, out.strip("\n> ")) == (status, out.strip("\n> ")), err
        assert message in err and "Traceback" not in err
