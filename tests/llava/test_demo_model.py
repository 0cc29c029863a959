"""The demo's start and its controls: what is taken away is gone, and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from codecvit.llava.data.visuals import Visual
from codecvit.llava.demo_model import (
    CONTROLS,
    ControlledAnswerer,
    demo_tokenizer,
    first_frame,
    make_start,
    permute_times,
)
from codecvit.llava.mcq.answer import ModelAnswerer
from codecvit.llava.mcq.runner import Asked
from codecvit.llava.model.modeling import LlavaForConditionalGeneration

from .several import COUNT, made_visual

TEXTS = ["Which way does the digit move?\nA. left\nB. right\nAnswer with the letter only."] * 3
PATCH = 4


def clip(seed=0, moved=0):
    """A whole first frame of 4 x 4 patches and four patches at each of three later times."""
    rng = np.random.default_rng(seed)
    h, w = np.divmod(np.arange(16), 4)
    places = [np.stack([np.zeros(16, int), h, w], 1)]
    for t in (21, 42, 63):
        at = np.sort(rng.choice(16, 4, replace=False))
        places.append(np.stack([np.full(4, t), *np.divmod(at, 4)], 1))
    positions = np.concatenate(places).astype(np.int32)
    patches = rng.integers(0, 256, (28, PATCH, PATCH, 3), dtype=np.uint8)
    patches[16:] = (patches[16:].astype(int) + moved) % 256
    groups = np.repeat(np.arange(2, dtype=np.int32), 14)
    return Visual(patches, positions, groups, np.array([[0, 1], [1, 2.0]]), (4, 4))


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Folder and model of a start, on an encoder of two tiny blocks."""
    from codecvit.convert.hf.configuration_onevision_encoder import OneVisionEncoderConfig
    from codecvit.convert.hf.modeling_onevision_encoder import OneVisionEncoderModel

    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    config = OneVisionEncoderConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=16,
        patch_size=PATCH,
    )
    OneVisionEncoderModel(config).save_pretrained(folder / "encoder")
    model = make_start(folder / "start", folder / "encoder", TEXTS, 0, width=32, layers=2)
    return folder, model


def answerer(folder):
    return ModelAnswerer.load(folder / "start", device="cpu", dtype="float32")


def scores(answerer, *visuals):
    asked = [Asked(TEXTS[0], visual, "AB") for visual in visuals]
    return np.array([answer.scores for answer in answerer.loglik(asked)])


def test_the_tokenizer_reads_every_text_and_its_own_in_few_tokens(tmp_path):
    tokenizer = demo_tokenizer(TEXTS)
    strange = "ünknown <b> 漢\n\n  two spaces"
    assert tokenizer.decode(tokenizer.encode(strange)) == strange
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) / 2
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\n" + TEXTS[0] + "<|im_end|>"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.pad_token_id not in (again.eos_token_id, None)


def test_a_start_is_whole_and_follows_from_its_seed(started, tmp_path):
    folder, model = started
    loaded = LlavaForConditionalGeneration.from_pretrained(folder / "start")
    for (name, a), (_, b) in zip(
        sorted(model.state_dict().items()), sorted(loaded.state_dict().items()), strict=True
    ):
        assert torch.equal(a, b), name
    tower = model.vision_tower.state_dict()
    for seed, same in ((0, True), (1, False)):
        other = make_start(tmp_path / "s", folder / "encoder", TEXTS, seed, width=32, layers=2)
        for name in ("projector.conv.conv.weight", "projector.code.weight"):
            assert torch.equal(model.state_dict()[name], other.state_dict()[name]) == same
        assert all(torch.equal(tower[k], v) for k, v in other.vision_tower.state_dict().items())


def test_every_patch_is_a_visual_token(started):
    folder, _ = started
    answer = answerer(folder).loglik([Asked(TEXTS[0], clip(), "AB")])[0]
    assert answer.visual_tokens == len(clip())


def test_zeroed_tokens_hide_every_clip_and_sight_does_not(started):
    folder, _ = started
    seen = scores(answerer(folder), clip(0), clip(1))
    assert not np.allclose(seen[0], seen[1])
    hidden = scores(ControlledAnswerer(answerer(folder), "zeroed"), clip(0), clip(1))
    assert np.array_equal(hidden[0], hidden[1])


def test_the_first_frame_alone_hides_what_comes_later(started):
    folder, _ = started
    one = ControlledAnswerer(answerer(folder), "first-frame")
    seen = scores(one, clip(0), clip(0, moved=90))
    assert np.array_equal(seen[0], seen[1])
    whole = scores(answerer(folder), clip(0), clip(0, moved=90))
    assert not np.allclose(whole[0], whole[1])


def test_permuted_times_keep_all_but_the_times():
    visual = clip()
    moved = permute_times(visual, 0)

    def where(v):
        rows = zip(v.patches, v.positions.tolist(), strict=True)
        return {(patch.tobytes(), h, w): t for patch, (t, h, w) in rows}

    before, after = where(visual), where(moved)
    assert before.keys() == after.keys()
    exchanged = {(before[key], after[key]) for key in before}
    assert len(exchanged) == 4, "patches of one time stay together"
    assert all(old != new for old, new in exchanged)
    assert {new for _, new in exchanged} == {0, 21, 42, 63}
    assert (np.diff(moved.positions[:, 0]) >= 0).all()
    assert np.array_equal(moved.groups, visual.groups)
    assert np.array_equal(permute_times(visual, 0).positions, moved.positions)
    assert len({permute_times(visual, seed).patches.tobytes() for seed in range(20)}) > 3


def test_a_clip_of_one_time_stays_as_it_is():
    visual = first_frame(clip())
    assert np.array_equal(permute_times(visual, 0).positions, visual.positions)
    assert len(visual) == 16 and visual.num_groups == 1 and len(visual.seconds) == 1


def test_permuted_times_change_what_a_model_says(started):
    folder, _ = started
    changed = scores(ControlledAnswerer(answerer(folder), "permuted"), clip())
    assert not np.allclose(changed, scores(answerer(folder), clip()))


def test_results_say_what_was_taken_away(started):
    folder, _ = started
    plain = answerer(folder).describe()
    for control in CONTROLS:
        told = ControlledAnswerer(answerer(folder), control).describe()
        assert told["control"] == control and told.items() > plain.items()
    with pytest.raises(ValueError, match="zeroed, permuted, first-frame"):
        ControlledAnswerer(answerer(folder), "blind")


def test_a_width_without_whole_heads_is_refused(tmp_path):
    with pytest.raises(ValueError, match="multiple of 32"):
        make_start(tmp_path, tmp_path, TEXTS, 0, width=48)


def test_the_demo_model_and_its_controls(encoders, tmp_path):
    """A start of several encoders; exchanged times and the first frame reach the frames too."""
    texts = ["What moves?\nA. a\nB. b", "A", "B"]
    make_start(tmp_path, encoders, texts, 0, width=32, layers=1, pool_empty="learned")
    answerer = ModelAnswerer.load(tmp_path, "cpu", "float32", 2)
    assert answerer.config.encoder_names == ("video", "image")
    visual = made_visual(1, steps=8)
    moved = permute_times(visual, 0)
    pairs = [(a.tobytes(), b.tobytes()) for a, b in zip(*frames_of(visual, moved), strict=True)]
    assert all(a != b for a, b in pairs)
    assert sorted(a for a, _ in pairs) == sorted(b for _, b in pairs)
    one = first_frame(visual)
    assert len(one.frames) == COUNT and (one.frames.pixels == visual.frames.pixels[0]).all()
    assert first_frame(made_visual(1, patches=False)).num_groups == 1
    item = Asked("What moves?\nA. a\nB. b", visual, "AB")
    plain = answerer.loglik([item])[0]
    for control in ("permuted", "first-frame", "zeroed"):
        found = ControlledAnswerer(answerer, control).loglik([item])[0]
        assert found.scores != plain.scores and found.visual_tokens == plain.visual_tokens


def frames_of(*visuals):
    return [visual.frames.pixels for visual in visuals]


@pytest.mark.parametrize(
    "fields", [{"pool_empty": "learned"}, {"fusion": "concat"}], ids=["score", "concat"]
)
def test_an_absent_encoder_is_not_read(encoders, tmp_path, fields):
    make_start(tmp_path, encoders, TEXTS, 0, width=32, layers=1, pool=(4, 2, 2), **fields)
    answerer = ModelAnswerer.load(tmp_path, "cpu", "float32", 2)
    visual, other = made_visual(1), made_visual(2)
    for name, changed in (
        ("video", dataclasses.replace(visual, patches=255 - visual.patches)),
        ("image", dataclasses.replace(visual, frames=other.frames)),
    ):
        items = [Asked("What moves?\nA. a\nB. b", shown, "AB") for shown in (visual, changed)]
        first, second = answerer.loglik(items)
        assert first.scores != second.scores
        control = ControlledAnswerer(
            ModelAnswerer.load(tmp_path, "cpu", "float32", 2), f"without-{name}"
        )
        first, second = control.loglik(items)
        assert first.scores == pytest.approx(second.scores, abs=1e-6)
        if "fusion" not in fields:  # with weights
            assert first.fusion[name] == 0.0 and sum(first.fusion.values()) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="without-image"):
        ControlledAnswerer(answerer, "without-sound")
