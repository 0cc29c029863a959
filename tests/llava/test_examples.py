"""Conversations as ids and labels: placeholders, supervision, prompts, batches."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from codecvit.codec.llava.rows import with_mosaics
from codecvit.llava import TEMPLATES, VISUAL_TOKEN
from codecvit.llava.data.collate import collate
from codecvit.llava.data.examples import (
    IGNORED,
    ExampleError,
    make_example,
    prompt_example,
    timestamp_text,
)
from codecvit.llava.data.visuals import Visual

from .made import turns

BOTH = ("<image>", "<video>")


def picture(seed=0, rows=2, columns=3):
    """An image visual of 4-pixel patches."""
    h, w = np.divmod(np.arange(rows * columns, dtype=np.int32), columns)
    patches = np.random.default_rng(seed).integers(0, 256, (rows * columns, 4, 4, 3), np.uint8)
    positions = np.stack([np.zeros_like(h), h, w], axis=1)
    return Visual(patches, positions, np.zeros(len(h), np.int32), None, (rows, columns))


def film(groups=3, times=True, seed=0):
    """A video visual of `groups` mosaics of 2 x 2 cells, a frame each."""
    cells = np.arange(groups * 4, dtype=np.int32)
    positions = np.stack([cells // 4 * 20, cells // 2 % 2, cells % 2], axis=1)
    patches = np.random.default_rng(seed).integers(0, 256, (groups * 4, 4, 4, 3), np.uint8)
    seconds = np.stack([np.arange(groups) * 1.5, np.arange(groups) * 1.5 + 1.25], axis=1)
    return Visual(patches, positions, cells // 4, seconds if times else None, (2, 2))


@pytest.fixture(scope="module")
def merging():
    """A ChatML tokenizer that merges over line ends: a piece cut elsewhere has other ids."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    texts = ["assistant\nIt\n\nWhat?\n", "<0.0-1.2 seconds>", "\n<image>\n", "It moves."] * 5
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(text, special=True) for text in specials],
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


@pytest.fixture(scope="module")
def config(make_config):
    return make_config(template="chatml")


def shown(example, tokenizer):
    """The text of an example, `#` for each visual token."""
    out, ids = "", []
    for number in [*example.input_ids.tolist(), VISUAL_TOKEN]:
        if number == VISUAL_TOKEN:
            out += tokenizer.decode(ids) + "#"
            ids = []
        else:
            ids.append(number)
    return out[:-1]


# What an example is


def test_a_whole_example_by_hand(tokenizer, config):
    talk = turns("Look:\n<image>\nWhat?", "A cat.", "And now?", "Still.")
    example = make_example(talk, [picture()], tokenizer, config, 500)
    assert shown(example, tokenizer) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nLook:\n######\nWhat?<|im_end|>\n<|im_start|>assistant\n"
        "A cat.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
        "Still.<|im_end|>\n"
    )
    labelled = example.labels != IGNORED
    assert tokenizer.decode(example.labels[labelled].tolist()) == "A cat.<|im_end|>Still.<|im_end|>"
    np.testing.assert_array_equal(example.labels[labelled], example.input_ids[labelled])
    assert example.input_ids.dtype == example.labels.dtype == np.int64
    assert example.supervised == len("A cat.Still.") + 2


def test_times_are_text_before_each_group(tokenizer, make_config):
    config = make_config(template="chatml", timestamps=True)
    talk = turns("<video>\nWhen?", "Then.")
    example = make_example(talk, [film()], tokenizer, config, 500)
    assert (
        "user\n<0.0-1.2 seconds>####\n<1.5-2.8 seconds>####\n<3.0-4.2 seconds>####\nWhen?"
        in shown(example, tokenizer)
    )
    published = make_example(talk, [film(times=False)], tokenizer, config, 500)
    assert "seconds" not in shown(published, tokenizer)
    off = make_example(talk, [film()], tokenizer, make_config(template="chatml"), 500)
    assert "user\n####\n####\n####\nWhen?" in shown(off, tokenizer)
    assert timestamp_text(59.96, 3600) == "<60.0-3600.0 seconds>"


def test_a_merged_seam_has_one_time_and_no_time_stands_alone(tokenizer, make_config):
    """With pooling to one step all tokens are of the first group."""
    config = make_config(
        template="chatml", timestamps=True, projector="3davg+linear", pool=(1, 2, 2)
    )
    example = make_example(turns("<video>When?", "Then."), [film()], tokenizer, config, 500)
    assert "user\n<0.0-1.2 seconds>####\n\nWhen?" in shown(example, tokenizer)


@pytest.mark.parametrize("projector", ["linear", "merger", "3davg+linear", "attentive+linear"])
def test_as_many_visual_tokens_as_the_model_makes(tokenizer, make_config, projector):
    from codecvit.llava import num_visual_tokens

    config = make_config(template="chatml", projector=projector, pool=(2, 1, 1))
    visuals = [picture(rows=5), film()]
    example = make_example(turns("<image><video>", "Yes."), visuals, tokenizer, config, 900)
    wanted = sum(num_visual_tokens(config, v.positions, v.grid) for v in visuals)
    assert (example.input_ids == VISUAL_TOKEN).sum() == wanted


@pytest.mark.parametrize("timestamps", [False, True])
def test_a_row_of_mosaics_and_the_row_of_its_video_are_equal(merging, make_config, timestamps):
    """What `llava data` writes, and the plain row that is packed on the fly."""
    config = make_config(template="chatml", timestamps=timestamps)
    for text in ("<video>\nWhat?", "Look: <video>", "<image>\nWhat?", "What?"):
        row = {"video": "a.mp4", "conversations": turns(text, "It moves.")}
        packed = with_mosaics(row, ["1", "2", "3"], "p.npy")
        a = make_example(packed, [film()], merging, config, 500)
        if "<" not in text:
            text = f"<video>\n{text}"
        plain = turns(text.replace("<image>", "<video>"), "It moves.")
        b = make_example(plain, [film()], merging, config, 500)
        np.testing.assert_array_equal(a.input_ids, b.input_ids)
        np.testing.assert_array_equal(a.labels, b.labels)


# Training and inference


@pytest.mark.parametrize("template", sorted(set(TEMPLATES) - {"plain"}))
def test_a_prompt_is_the_beginning_of_the_training_text(tokenizer_for, make_config, template):
    tokenizer = tokenizer_for(TEMPLATES[template].name)
    config = make_config(template=template, timestamps=True)
    talk = turns("<video>\nWhat?", "It moves.", "\nWhere\n", "\n\nLeft.\n")
    for count in (2, 4):
        whole = make_example(talk[:count], [film()], tokenizer, config, 900)
        for given in (talk[:count], talk[: count - 1]):
            prompt = prompt_example(given, [film()], tokenizer, config, 900)
            np.testing.assert_array_equal(prompt.input_ids, whole.input_ids[: len(prompt)])
            assert (prompt.labels == IGNORED).all()
            start = np.flatnonzero(whole.labels[: len(whole)] != IGNORED)
            assert len(prompt) in start and whole.labels[len(prompt) - 1] == IGNORED


def test_ids_of_prompts_and_training_agree_where_tokens_could_merge(merging, config):
    assert len(merging("assistant\nIt")["input_ids"]) < 6  # else this test shows nothing
    talk = turns("<image>\nWhat?", "It moves.", "Now?", "It\n\nmoves.")
    whole = make_example(talk, [picture()], merging, config, 500)
    for count in (2, 4):
        prompt = prompt_example(talk[:count], [picture()], merging, config, 500)
        np.testing.assert_array_equal(prompt.input_ids, whole.input_ids[: len(prompt)])


def test_the_plain_template_is_image_and_caption(tokenizer, make_config):
    config = make_config(template="plain")
    talk = turns("Describe <image> in brief.", "A cat.")
    example = shown(make_example(talk, [picture()], tokenizer, config, 99), tokenizer)
    prompt = shown(prompt_example(talk, [picture()], tokenizer, config, 99), tokenizer)
    assert prompt.rstrip() == "######" and example == f"{prompt}A cat.\n"


def test_vision_changes_no_supervision(tokenizer, config):
    talk = turns("{}What?", "A cat.", "{}Why?", "So.")

    def counted(first, second, visuals):
        texts = [t["value"] for t in talk]
        filled = turns(texts[0].format(first), texts[1], texts[2].format(second), texts[3])
        example = make_example(filled, visuals, tokenizer, config, 900)
        assert (example.labels[example.input_ids == VISUAL_TOKEN] == IGNORED).all()
        return example.labels[example.labels != IGNORED].tolist()

    text = counted("", "", [])
    assert text == counted("<image>", "", [picture()])
    assert text == counted("<video>", "<image>", [film(), picture()])


def test_nothing_is_supervised_where_that_is_not_wanted(tokenizer, config):
    example = make_example(turns("What?", "That."), [], tokenizer, config, 99, supervise=False)
    assert (example.labels == IGNORED).all()


def test_visual_tokens_in_an_answer_are_not_supervised(tokenizer, config):
    example = make_example(turns("Draw.", "See <image>."), [picture()], tokenizer, config, 200)
    assert example.supervised == len("See .") + 1


# What cannot be


@pytest.mark.parametrize(
    ("text", "visuals"),
    [
        ("<image><image>", [picture()]),
        ("What?", [picture()]),
        ("<image>", []),
        ("<video>", []),
        ("<image>", [picture(), picture()]),
        ("<image><image>", [film()]),  # three mosaics
        ("<image><image><image><image>", [film()]),
        ("<image><video><image><image>", [film()]),
        ("<video><video>", [film()]),
        ("<image><video>", [film(), picture()]),  # in the other order
    ],
)
def test_a_wrong_number_of_placeholders_is_refused(tokenizer, config, text, visuals):
    with pytest.raises(ExampleError, match="do not fit") as error:
        make_example(turns(text, "Yes."), visuals, tokenizer, config, 500)
    assert error.value.kind == "COUNT"
    with pytest.raises(ExampleError):
        prompt_example(turns(text), visuals, tokenizer, config, 500)


def test_what_is_too_long_is_refused_not_cut(tokenizer, config):
    talk = turns("<image>What?", "A cat.")
    length = len(make_example(talk, [picture()], tokenizer, config, 500))
    assert len(make_example(talk, [picture()], tokenizer, config, length)) == length
    with pytest.raises(ExampleError, match=rf"{length} tokens \(6 visual\) .* = {length - 1}") as e:
        make_example(talk, [picture()], tokenizer, config, length - 1)
    assert e.value.kind == "OVERFLOW"


def test_conversations_that_cannot_be_learnt_from(tokenizer, config):
    for kind, talk in {
        "ANSWER": turns("What?"),
        "CONVERSATION": [],
    }.items():
        with pytest.raises(ExampleError) as error:
            make_example(talk, [], tokenizer, config, 500)
        assert error.value.kind == kind
    for talk in (turns("a", "b")[::-1], [{"from": "me", "value": "x"}], [{"from": "human"}]):
        with pytest.raises(ExampleError) as error:
            make_example({"conversations": talk}, [], tokenizer, config, 500)
        assert error.value.kind == "CONVERSATION"
    again = pickle.loads(pickle.dumps(error.value))  # noqa: S301, our own bytes
    assert (again.kind, str(again)) == (error.value.kind, str(error.value))


# Batches


@pytest.fixture(scope="module")
def mixed(tokenizer, config):
    """Text, image, several images, video."""
    return [
        make_example(turns(text, "It is so."), visuals, tokenizer, config, 500)
        for text, visuals in (
            ("Why?", []),
            ("<image>\nWhat?", [picture(1)]),
            ("<image> and <image>", [picture(2), picture(3, rows=3)]),
            ("<video>\nWhat moves, and where to?", [film(seed=4)]),
        )
    ]


def test_a_batch_has_all_visuals_in_the_order_of_their_tokens(mixed, tokenizer):
    batch = collate(mixed, tokenizer.pad_token_id)
    visuals = [visual for example in mixed for visual in example.visuals]
    assert batch["lengths"].tolist() == [6, 6, 9, 12]
    assert batch["grids"].tolist() == [[2, 3], [2, 3], [3, 3], [2, 2]]
    np.testing.assert_array_equal(batch["patches"], np.concatenate([v.flat() for v in visuals]))
    np.testing.assert_array_equal(
        batch["positions"], np.concatenate([v.positions for v in visuals])
    )
    dtypes = {name: tensor.dtype for name, tensor in batch.items()}
    assert dtypes.pop("patches") == torch.uint8 and set(dtypes.values()) == {torch.int64}
    aside = collate(mixed, tokenizer.pad_token_id, left=True)
    for row, example in enumerate(mixed):
        ids = example.input_ids.tolist()
        assert batch["input_ids"][row, : len(ids)].tolist() == ids
        assert aside["input_ids"][row, -len(ids) :].tolist() == ids
        assert aside["labels"][row, -len(ids) :].tolist() == example.labels.tolist()
        assert batch["attention_mask"][row].sum() == len(example)
        assert (batch["labels"][row] != IGNORED).sum() == example.supervised


def test_a_batch_is_what_the_model_takes(mixed, tokenizer, make_model):
    """Mixed rows, padded on either side, give the logits of each row alone."""
    model = make_model()
    alone = []
    with torch.no_grad():
        for example in mixed:
            batch = collate([example], tokenizer.pad_token_id)
            alone.append(model(**batch | {"labels": None}).logits[0])
        for left in (False, True):
            batch = collate(mixed, tokenizer.pad_token_id, left)
            logits = model(**batch | {"labels": None}).logits
            for row, wanted in enumerate(alone):
                got = logits[row][batch["attention_mask"][row].bool()]
                torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-3)
    assert model(**collate(mixed[:1], tokenizer.pad_token_id)).loss > 0


def test_batches_that_cannot_be(mixed):
    with pytest.raises(ValueError, match="at least one example"):
        collate([], 0)
    large = picture()
    visual = Visual(np.zeros((6, 8, 8, 3), np.uint8), large.positions, large.groups, None, (2, 3))
    other = type(mixed[1])(mixed[1].input_ids, mixed[1].labels, [visual])
    with pytest.raises(ValueError, match=r"patches of one side, got \[4, 8\]"):
        collate([mixed[1], other], 0)
