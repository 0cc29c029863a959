"""A model of an encoder that reads codec patches and one that reads frames."""

import copy
import itertools

import pytest
import torch

from codecvit.llava import LlavaForConditionalGeneration
from codecvit.llava.model.fusion import FUSIONS, WEIGHTED

from .several import COUNT, ROWS, VIDEO, batch_of, fields_of, made_visual, make_several

FORMS = [{"fusion": kind} for kind in FUSIONS]
FORMS += [
    {"fusion": "dual_stream", "projector": "mlp2x_gelu", "pool_level": 2, "pool_first": False},
    {"fusion": "concat", "projector": "linear"},
    {"projector": "attentive+linear", "pool": (2, 2, 1)},
    {"projector": "3dconv+linear", "pool_empty": "learned", "position_embedding": "sincos"},
]
IDS = [*FUSIONS, "videogpt-plus", "unpooled", "attentive", "conv"]
QUICK = ("score", "concat_channel_ln", "videogpt-plus", "conv")
SOME = [
    pytest.param(form, id=name, marks=() if name in QUICK else pytest.mark.slow)
    for form, name in zip(FORMS, IDS, strict=True)
]


@pytest.fixture(scope="module")
def models(encoders):
    """form -> a model; made once."""
    made = {}

    def get(form):
        key = repr(form)
        if key not in made:
            made[key] = make_several(encoders, **fields_of(form))
        return made[key]

    return get


@pytest.fixture(scope="module")
def model(models):
    return models(FORMS[0])


def logits_of(model, rows=ROWS, left=False, **more):
    """Logits of each row without its padding."""
    batch = batch_of(model, rows, left)
    with torch.no_grad():
        out = model(**batch, **more)
    return [x[m.bool()] for x, m in zip(out.logits, batch["attention_mask"], strict=True)], out


@pytest.mark.parametrize("form", FORMS, ids=IDS)
def test_a_batch_is_its_rows(form, models):
    """Text, images and videos together, padded on either side; counts are the configuration's."""
    model = models(form)
    alone = [logits_of(model, [row])[0][0] for row in ROWS]
    for left in (False, True):
        got, out = logits_of(model, left=left)
        for one, expected in zip(got, alone, strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
        if model.config.fusion in WEIGHTED:
            torch.testing.assert_close(out.fusion_weights.sum(1), torch.ones(3))
        else:
            assert out.fusion_weights is None


@pytest.mark.parametrize("form", SOME)
def test_saving_and_loading_gives_the_same_model(form, models, tmp_path):
    model = models(form)
    model.save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    state, expected = loaded.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert loaded.config.to_dict()["encoders"] == model.config.to_dict()["encoders"]
    assert "vision_config" not in loaded.config.to_dict()
    for one, other in zip(logits_of(loaded)[0], logits_of(model)[0], strict=True):
        assert torch.equal(one, other)
    half = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_every_encoder_matters(model):
    """Another patch, or another frame, is another answer; the same one is the same."""
    expected = logits_of(model, [[1, VIDEO, 2]])[0][0]
    for part in ("patches", "frames"):
        batch = batch_of(model, [[1, VIDEO, 2]])
        batch[part] = batch[part].clone()
        batch[part][-1] = 255 - batch[part][-1]
        with torch.no_grad():
            got = model(**batch).logits[0]
        assert not torch.allclose(got, expected), part


@pytest.mark.parametrize("form", FORMS[: len(FUSIONS)], ids=FUSIONS)
def test_the_order_of_encoders_is_of_no_consequence(form, models, encoders):
    """Neither in drawing projectors nor in reading; where a form means it, it does."""
    model = models(form)
    other = make_several(encoders[::-1], **fields_of(form))
    state, expected = other.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    pairs = zip(logits_of(other)[0], logits_of(model)[0], strict=True)
    same = [torch.equal(one, two) for one, two in pairs]
    assert same == ([False, True, False] if form["fusion"] in ("concat", "first") else [True] * 3)


def test_a_projector_does_not_depend_on_what_stands_beside_it(models, encoders):
    alone = make_several(encoders[1:])
    both = models(FORMS[0]).projector.encoders.image.state_dict()
    for name, tensor in alone.projector.encoders.image.state_dict().items():
        assert torch.equal(tensor, both[name])
    assert not torch.equal(
        make_several(encoders, seed=1).projector.encoders.image.mlp[0].weight, both["mlp.0.weight"]
    )


@pytest.mark.parametrize("form", FORMS[: len(FUSIONS)], ids=FUSIONS)
def test_a_masked_encoder_has_no_influence(form, models):
    """Whatever it was shown; and as if the visual had nothing for it."""
    model = models(form)
    names = model.config.encoder_names
    for name, part in (("image", "frames"), ("video", "patches")):
        mask = torch.tensor([[n != name for n in names]])
        visual = made_visual(1, patches=name != "video", frames=name != "image")
        absent = batch_of(model, [[1, visual, 2]])
        with torch.no_grad():
            expected = model(**absent)
            batch = batch_of(model, [[1, VIDEO, 2]])
            if model.config.in_turn:  # the text has fewer tokens then, too
                with pytest.raises(ValueError, match="visual tokens"):
                    model(**batch, encoder_mask=mask)
                batch = {**batch, "input_ids": absent["input_ids"]}
                batch["attention_mask"] = absent["attention_mask"]
            for fill in (0, 77):
                batch[part] = torch.full_like(batch[part], fill)
                out = model(**batch, encoder_mask=mask)
                torch.testing.assert_close(out.logits, expected.logits, rtol=1e-4, atol=1e-5)
                if out.fusion_weights is not None:
                    assert out.fusion_weights[0, names.index(name)] == 0
    with pytest.raises(ValueError, match=r"encoder_mask must be bool \[1, 2\].*image"):
        model(**batch_of(model, [[1, VIDEO, 2]]), encoder_mask=torch.ones(1, 2))


@pytest.mark.parametrize("form", [FORMS[0], FORMS[len(FUSIONS)]], ids=["score", "videogpt-plus"])
def test_kept_features_give_the_same(form, models):
    """Those of several visuals, in one pass of the encoders, for logits and for generation."""
    model = models(form)
    batch = batch_of(model)
    visuals = {n: batch.pop(n) for n in ("patches", "positions", "lengths", "grids")}
    visuals |= {n: batch.pop(n) for n in ("frames", "frame_counts")}
    with torch.no_grad():
        features = model.encode_visuals(**visuals)
        assert features.keys() == {"video", "image"}
        got = model(**batch, visual_features=features)
    assert torch.equal(got.logits, model(**batch, **visuals).logits)
    prompt = batch_of(model, [ROWS[2]], left=True)
    expected = model.generate(**prompt, max_new_tokens=3)
    only = {n: prompt[n] for n in ("input_ids", "attention_mask")}
    kept = model.encode_visuals(**{n: x for n, x in prompt.items() if n not in only})
    assert torch.equal(model.generate(**only, visual_features=kept, max_new_tokens=3), expected)
    with torch.no_grad():
        embeds, _ = model.embed(only["input_ids"], kept)
    assert torch.equal(model.generate(**only, inputs_embeds=embeds, max_new_tokens=3), expected)
    with pytest.raises(ValueError, match="give one of the two"):
        model.generate(**only, inputs_embeds=embeds, visual_features=kept, max_new_tokens=3)
    with pytest.raises(ValueError, match="features are of the encoders"):
        model(**only, visual_features={"video": kept["video"]})


def test_generation_in_a_batch(model):
    batch = batch_of(model, left=True)
    together = model.generate(**batch, max_new_tokens=4, do_sample=False)
    for row, expected in zip(ROWS, together, strict=True):
        alone = model.generate(**batch_of(model, [row], left=True), max_new_tokens=4)[0].tolist()
        rest = set(expected.tolist()[len(alone) :])
        assert alone == expected.tolist()[: len(alone)] and rest <= {256}


def test_one_encoder_of_frames(encoders):
    """No patches anywhere; the fusion is nothing."""
    model = make_several(encoders[1:])
    assert model.config.patch_size is None and not list(model.projector.fusion.parameters())
    visuals = [made_visual(3, patches=False), made_visual(4, steps=1, patches=False)]
    rows = [[1, visuals[0], 2], [3, visuals[1]]]
    batch = batch_of(model, rows)
    assert batch["patches"] is None
    assert [(row == -200).sum().item() for row in batch["input_ids"]] == [8, 4]
    alone = [logits_of(model, [row])[0][0] for row in rows]
    for one, expected in zip(logits_of(model, rows)[0], alone, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no encoder of the model reads patches"):
        model(**batch_of(model, [[1, VIDEO, 2]]))


def test_tokens_of_frames_are_torchs_adaptive_pooling(encoders):
    """In the order (t, h, w), as MERV's 3davg has it."""
    model = make_several(encoders[1:], projector="3davg+linear", pool=(3, 1, 2))
    batch = batch_of(model, [[VIDEO_OF_FRAMES]])
    with torch.no_grad():
        seen = model.encode_visuals(frames=batch["frames"], frame_counts=batch["frame_counts"])
        features = seen["image"].features
        dense = features.view(1, COUNT, 2, 2, -1).permute(0, 4, 1, 2, 3)
        pooled = torch.nn.functional.adaptive_avg_pool3d(dense, (3, 1, 2))
        expected = model.projector.encoders.image.mlp(pooled.flatten(2)[0].T)
        torch.testing.assert_close(model.projector(seen)[0], expected, rtol=1e-5, atol=1e-5)


VIDEO_OF_FRAMES = made_visual(5, patches=False)


def test_patches_and_frames_meet_in_the_same_cells(models):
    """A cell of a patch is its share of the 64 slots and of the grid, whatever else was chosen."""
    model = models({"projector": "3davg+linear", "pool": (4, 2, 2)})
    visual = made_visual(1, steps=8, keep=6)
    batch = batch_of(model, [[visual]])
    names = ("patches", "positions", "lengths", "grids", "frames", "frame_counts")
    with torch.no_grad():
        seen = model.encode_visuals(**{n: batch[n] for n in names})
        alone = model.projector(seen, torch.tensor([[True, False]]))[0].view(4, 2, 2, -1)
    features, projector = seen["video"].features, model.projector.encoders.video
    last = {}
    for t, h, w in itertools.product(range(4), range(2), range(2)):
        there = [
            i
            for i, (slot, y, x) in enumerate(visual.positions.tolist())
            if (slot // 16, y // 2, x // 2) == (t, h, w)
        ]
        if there:
            last[h, w] = features[there].mean(0)
        torch.testing.assert_close(alone[t, h, w], projector.mlp(last[h, w]), rtol=1e-4, atol=1e-5)


def test_attention_is_chosen_for_all_towers(encoders, tmp_path):
    make_several(encoders, attn_implementation="eager").save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    for tower in loaded.vision_tower.values():
        assert tower.config._attn_implementation == "eager"
    sdpa = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    for tower in sdpa.vision_tower.values():
        assert tower.config._attn_implementation == "sdpa"


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=IDS)
def test_autocast_and_bfloat16_are_close_to_float32(form, models):
    """Also where an encoder sees nothing, and with frozen towers in bfloat16 beside the rest."""
    model = copy.deepcopy(models(form))
    rows = [[1, VIDEO, 2], [3, made_visual(2, frames=False), 4]]
    expected = logits_of(model, rows)[0]

    def check():
        for one, other in zip(logits_of(model, rows)[0], expected, strict=True):
            torch.testing.assert_close(one.float(), other, rtol=0.1, atol=0.1)

    for change in (lambda: None, lambda: model.vision_tower.to(torch.bfloat16)):
        change()
        with torch.autocast("cpu", torch.bfloat16):
            check()
    model.to(torch.bfloat16)
    check()


def test_shapes_of_frames_are_checked(model):
    batch = batch_of(model, [[1, VIDEO, 2]])
    with pytest.raises(ValueError, match=r"frames must be uint8 \[4, 16, 16, 3\]"):
        model(**{**batch, "frames": batch["frames"][:, :8]})
    with pytest.raises(ValueError, match="has 2 frames: videos have 4"):
        model(**{**batch, "frames": batch["frames"][:2], "frame_counts": torch.tensor([2])})
    with pytest.raises(ValueError, match="need frame_counts"):
        model(**{**batch, "frame_counts": None})
    with pytest.raises(ValueError, match=r"are of \[1, 2\] visuals"):
        model(**{**batch, "frame_counts": torch.tensor([2, 2])})


def test_one_decode_serves_encoders_of_other_numbers_and_sizes(encoders):
    """The second sees every other frame of the first's, at its own size."""
    source = {"kind": "siglip", "folder": encoders[1].split(":")[1][:-2]}
    pair = [
        {**source, "name": "all", "frames": 4},
        {**source, "name": "other", "frames": 2, "image_size": 8},
    ]
    model = make_several(pair)
    assert model.config.frame_rule.count == 4 and model.config.frame_rule.size == 16
    batch = batch_of(model, [[VIDEO_OF_FRAMES]])
    with torch.no_grad():
        seen = model.encode_visuals(frames=batch["frames"], frame_counts=batch["frame_counts"])
        frames = batch["frames"].clone()
        frames[1::2] = 0
        changed = model.encode_visuals(frames=frames, frame_counts=batch["frame_counts"])
    assert seen["all"].features.shape == (16, 32) and seen["other"].features.shape == (2, 32)
    assert torch.equal(seen["other"].features, changed["other"].features)
    assert not torch.equal(seen["all"].features, changed["all"].features)


def test_dual_stream_is_videogpts_order(encoders):
    """All tokens of the encoder of single frames, then all of the other's, each in time order."""
    model = make_several(encoders, fusion="dual_stream", projector="linear")
    assert model.config.encoder_names == ("image", "video")
    batch = batch_of(model, [[VIDEO]])
    names = ("patches", "positions", "lengths", "grids", "frames", "frame_counts")
    with torch.no_grad():
        seen = model.encode_visuals(**{n: batch[n] for n in names})
        tokens, counts, weights = model.projector(seen)
        parts = [model.projector.encoders[n].mlp(seen[n].features) for n in ("image", "video")]
    assert torch.equal(tokens, torch.cat(parts)) and counts.tolist() == [16 + 26]
    assert weights is None
