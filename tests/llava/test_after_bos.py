"""Visual tokens before the text, behind its BOS token: MERV's splice."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codecvit.llava import VISUAL_TOKEN
from codecvit.llava.data.collate import collate
from codecvit.llava.data.examples import IGNORED, ExampleError, make_example, prompt_example

from .conftest import make_tokenizer
from .made import turns
from .test_examples import film, picture, shown

LLAMA = ("vicuna", "llama2", "llama3")


@pytest.fixture(scope="module")
def llama():
    """A Llama tokenizer, which knows its BOS token."""
    tokenizer = make_tokenizer("vicuna")
    tokenizer.bos_token = "<s>"
    return tokenizer


@pytest.fixture(scope="module")
def qwen(tokenizer):
    assert tokenizer.bos_token is None
    return tokenizer


def supervised(example, tokenizer):
    return tokenizer.decode(example.labels[example.labels != IGNORED].tolist())


def test_behind_bos_by_hand(llama, make_config):
    config = make_config(template="vicuna", splice="after_bos")
    talk = turns("<video>\nWhat?", "A cat.", "And\n<image>", "A dog.")
    example = make_example(talk, [film(), picture()], llama, config, 900)
    text = shown(example, llama)
    assert text.startswith("<s>" + "#" * (12 + 6) + "A chat between a curious user and")
    assert text.endswith(" USER: What? ASSISTANT: A cat.</s>USER: And ASSISTANT: A dog.</s>")
    assert supervised(example, llama) == " A cat.</s> A dog.</s>"
    assert example.input_ids[0] == llama.bos_token_id and example.labels[0] == IGNORED
    assert (example.labels[example.input_ids == VISUAL_TOKEN] == IGNORED).all()


def test_before_everything_where_there_is_no_bos_by_hand(qwen, make_config):
    config = make_config(template="chatml", splice="after_bos")
    talk = turns("Look:\n<image>\nWhat?", "A cat.", "And now?", "Still.")
    assert shown(make_example(talk, [picture()], qwen, config, 500), qwen) == (
        "######<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nLook:\n\nWhat?<|im_end|>\n<|im_start|>assistant\n"
        "A cat.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
        "Still.<|im_end|>\n"
    )


def test_captions_by_hand(llama, make_config):
    config = make_config(template="plain", splice="after_bos")
    talk = turns("Describe <image><image><image> in brief.", "A cat.")
    assert shown(make_example(talk, [film()], llama, config, 99), llama) == "#" * 12 + "A cat.\n"
    assert len(prompt_example(talk, [film()], llama, config, 99)) == 12


@pytest.mark.parametrize(
    "places", ["<video>", "<image>\n<image>\n<image>", "<image><image><image>"]
)
def test_the_text_is_that_of_a_row_without_visuals(qwen, make_config, places):
    """However a row writes its places: ids and labels behind the visuals are those of pure text."""
    config = make_config(template="chatml", splice="after_bos")
    text = make_example(turns("What?", "A cat."), [], qwen, config, 500)
    for question in (f"{places}\nWhat?", f"What?\n{places}", f"{places}What?"):
        seen = make_example(turns(question, "A cat."), [film()], qwen, config, 500)
        assert seen.input_ids[:12].tolist() == [VISUAL_TOKEN] * 12
        np.testing.assert_array_equal(seen.input_ids[12:], text.input_ids)
        np.testing.assert_array_equal(seen.labels[12:], text.labels)
        assert seen.supervised == text.supervised


@pytest.mark.parametrize("template", [*LLAMA, "chatml", "phi3"])
def test_a_prompt_is_the_beginning_of_the_training_text(tokenizer_for, make_config, template):
    tokenizer = make_tokenizer(template)
    if template in LLAMA:
        tokenizer.bos_token = "<|begin_of_text|>" if template == "llama3" else "<s>"
    config = make_config(template=template, splice="after_bos")
    talk = turns("<video>\nWhat?", "It moves.", "Where\n<image>", "Left.")
    for count, visuals in ((2, [film()]), (4, [film(), picture()])):
        whole = make_example(talk[:count], visuals, tokenizer, config, 900)
        prompt = prompt_example(talk[:count], visuals, tokenizer, config, 900)
        np.testing.assert_array_equal(prompt.input_ids, whole.input_ids[: len(prompt)])
        start = int(template in LLAMA)
        tokens = 12 if count == 2 else 18
        assert (whole.input_ids[start : start + tokens] == VISUAL_TOKEN).all()
        assert (whole.input_ids == VISUAL_TOKEN).sum() == tokens


def test_places_and_visuals_still_have_to_fit(qwen, make_config):
    config = make_config(template="chatml", splice="after_bos")
    for text, visuals in (("What?", [picture()]), ("<image>", []), ("<image><image>", [film()])):
        with pytest.raises(ExampleError, match="do not fit"):
            make_example(turns(text, "Yes."), visuals, qwen, config, 500)


def test_times_between_visual_tokens_are_refused(make_config):
    with pytest.raises(ValueError, match="timestamps = True needs splice = 'placeholder'"):
        make_config(timestamps=True, splice="after_bos")
    with pytest.raises(ValueError, match=r"splice = 'front' must be one of"):
        make_config(splice="front")
    assert make_config(splice="after_bos").to_dict()["splice"] == "after_bos"
    assert make_config().splice == "placeholder"


def test_a_mixed_batch_equals_its_rows_alone(qwen, make_model):
    model = make_model(splice="after_bos")
    examples = [
        make_example(turns(text, "It is so."), visuals, qwen, model.config, 500)
        for text, visuals in (
            ("Why?", []),
            ("What?\n<image>", [picture(1)]),
            ("<video>\nWhat moves, and where to?", [film(seed=4)]),
        )
    ]
    with torch.no_grad():
        for left in (False, True):
            batch = collate(examples, qwen.pad_token_id, left)
            logits = model(**batch | {"labels": None}).logits
            for row, example in enumerate(examples):
                one = model(**collate([example], qwen.pad_token_id) | {"labels": None}).logits[0]
                got = logits[row][batch["attention_mask"][row].bool()]
                torch.testing.assert_close(got, one, atol=2e-4, rtol=1e-3)
