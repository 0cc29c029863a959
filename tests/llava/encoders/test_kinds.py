"""Every kind of encoder at a tiny random size: tokens, places, layers, chunks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import ConvNextConfig, SwinConfig

from codecvit.llava.encoders.registry import KINDS, build_tower, register, spec_of
from codecvit.llava.encoders.spec import NORM, EncoderSpec, chunked
from codecvit.llava.encoders.vits import part_of

from .made import OURS, PREFIX, TINY, kind_of, noise, tiny_tower

PER_FRAME = ("clip", "siglip", "siglip2", "dinov2", "dinov2 with registers", "hf")
CLIPS = ("vivit", "languagebind_video", "internvideo2")


def test_every_kind_that_reads_frames_is_tested_here():
    frames = {kind for kind, spec in KINDS.items() if spec.input == "frames"}
    assert {kind_of(name) for name in TINY} == frames
    assert set(PER_FRAME) | set(CLIPS) == set(TINY)


@pytest.mark.parametrize("name", TINY)
def test_shapes(name):
    spec, tower = tiny_tower(name)
    rows, columns = spec.grid(tower.config, None if spec.image_size == 224 else 32)
    assert (rows, columns) == (4, 4)
    steps = 4 // spec.tubelet
    assert spec.steps(4) == steps
    assert spec.features(tower, noise(), -2).shape == (2, steps, 16, 32)
    assert spec.features(tower, noise(frames=1), -2).shape == (2, 1, 16, 32)


def published_inputs(name, frames):
    """Frames [V, n, S, S, 3] as the model of transformers takes them."""
    images = frames.movedim(-1, -3)
    if name == "vivit":
        return {"pixel_values": images}
    images = images.flatten(0, 1)
    if name != "siglip2":
        return {"pixel_values": images}
    # The definition: patches in reading order, each flat (row, column, channel).
    side = images.shape[-1] // 8
    cut = [
        image[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8].permute(1, 2, 0).flatten()
        for image in images
        for r in range(side)
        for c in range(side)
    ]
    return {
        "pixel_values": torch.stack(cut).view(len(images), side**2, -1),
        "pixel_attention_mask": torch.ones(len(images), side**2, dtype=torch.long),
        "spatial_shapes": torch.tensor([[side, side]] * len(images)),
    }


@pytest.mark.parametrize("name", [name for name in TINY if name not in OURS])
def test_every_layer_is_the_hidden_state_of_transformers(name):
    spec, tower = tiny_tower(name)
    frames = noise()
    found = tower(**published_inputs(name, frames), output_hidden_states=True)
    prefix = PREFIX.get(name, 0)
    wanted = {layer: found.hidden_states[layer] for layer in range(-4, 4)}
    wanted[NORM] = found.last_hidden_state
    if name == "clip":  # which normalises what its head reads only after picking the class token
        wanted[NORM] = part_of(tower, ("post_layernorm", "vision_model.post_layernorm"))(
            wanted[NORM]
        )
    for layer, tokens in wanted.items():
        ours = spec.features(tower, frames, layer)
        theirs = tokens[:, prefix:].reshape(ours.shape)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=f"layer {layer}")


@pytest.mark.parametrize("name", [name for name in TINY if name in PER_FRAME])
def test_another_size_of_frames_is_another_grid(name):
    """The position embeddings are resized as transformers resizes them."""
    spec, tower = tiny_tower(name)
    assert spec.grid(tower.config, 48) == (6, 6)
    frames = noise(1, 1, size=48)
    ours = spec.features(tower, frames, -1)
    assert ours.shape == (1, 1, 36, 32)
    inputs = published_inputs(name, frames)
    if name in ("clip", "siglip", "hf"):
        inputs["interpolate_pos_encoding"] = True
    theirs = tower(**inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(ours[0], theirs[:, PREFIX.get(name, 0) :], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CLIPS)
def test_position_embeddings_of_one_size_refuse_others(name):
    spec, tower = tiny_tower(name)
    for act in (
        lambda: spec.grid(tower.config, 48),
        lambda: spec.features(tower, noise(size=48), -2),
    ):
        with pytest.raises(ValueError, match="image_size = 48 must be 32"):
            act()


@pytest.mark.parametrize("name", TINY)
def test_tokens_are_in_the_order_of_time_rows_and_columns(name):
    """Before any block a token sees its own patch alone."""
    spec, tower = tiny_tower(name)
    frames = noise(1)
    before = spec.features(tower, frames, 0)
    for time, row, column in ((0, 0, 0), (1, 2, 1), (3, 1, 3)):
        changed = frames.clone()
        changed[0, time, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
        moved = (spec.features(tower, changed, 0) - before).abs().amax(-1)[0]
        assert moved.nonzero().tolist() == [[time // spec.tubelet, 4 * row + column]]


@pytest.mark.parametrize("name", TINY)
def test_chunks_know_nothing_of_each_other(name):
    spec, tower = tiny_tower(name)
    frames = noise(1, frames=8)
    together = spec.features(tower, frames, -2)
    apart = [spec.features(tower, part, -2) for part in frames.split(4, dim=1)]
    torch.testing.assert_close(together, torch.cat(apart, 1), rtol=1e-5, atol=1e-6)
    changed = frames.clone()
    changed[:, 5] += 1
    moved = (spec.features(tower, changed, -2) - together).abs().amax((0, 2, 3)) > 1e-4
    reached = {5} if name in PER_FRAME else {4, 5, 6, 7}
    assert set(moved.nonzero().flatten().tolist()) == {t // spec.tubelet for t in reached}


@pytest.mark.parametrize("name", CLIPS)
def test_a_chunk_is_filled_with_its_last_frame_and_the_filling_is_dropped(name):
    spec, tower = tiny_tower(name)
    frames = noise(frames=6)
    filled = torch.cat([frames, frames[:, 5:], frames[:, 5:]], dim=1)
    wanted = spec.features(tower, filled, -2)[:, : spec.steps(6)]
    torch.testing.assert_close(spec.features(tower, frames, -2), wanted)
    black = torch.cat([frames, torch.zeros_like(frames[:, :2])], dim=1)
    other = spec.features(tower, black, -2)[:, : spec.steps(6)]
    assert not torch.allclose(other[:, -1], wanted[:, -1], atol=1e-3)


@pytest.mark.parametrize("name", ("vivit", "languagebind_video"))
def test_an_image_is_a_clip_that_stands_still(name):
    spec, tower = tiny_tower(name)
    image = noise(frames=1)
    still = spec.features(tower, image.expand(-1, 4, -1, -1, -1), -2)
    torch.testing.assert_close(spec.features(tower, image, -2), still[:, :1])


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_of_another_length_is_refused(name):
    spec, tower = tiny_tower(name)
    with pytest.raises(ValueError, match="chunk = 2 must be num_frames = 4"):
        spec.features(tower, noise(), -2, 2)


def test_tubelets_of_another_length_are_refused():
    spec, tower = tiny_tower("vivit", tubelet_size=[4, 8, 8])
    with pytest.raises(ValueError, match="tubelet_size = .*must have 2 frames"):
        spec.features(tower, noise(), -2)


@pytest.mark.parametrize("name", TINY)
def test_used_are_exactly_the_parameters_with_a_gradient(name):
    spec, tower = tiny_tower(name)
    names = {id(parameter): key for key, parameter in tower.named_parameters()}
    for layer in (-2, 0, NORM if spec.has_norm else -1):
        tower.zero_grad()
        tower.train().requires_grad_(True)  # ours add idle parameters in training alone
        spec.features(tower, noise(1), layer).sum().backward()
        touched = {key for key, p in tower.named_parameters() if p.grad is not None}
        listed = [names[id(p)] for module in spec.used(tower, layer) for p in module.parameters()]
        assert set(listed) == touched
        assert len(listed) == len(set(listed))


@pytest.mark.parametrize("name", [name for name in TINY if name != "hf"])
def test_blocks_behind_the_layer_never_run(name):
    spec, tower = tiny_tower(name)
    blocks = next(m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) == 3)
    for parameter in blocks[2].parameters():
        parameter.data.fill_(torch.nan)
    assert spec.features(tower, noise(1), -2).isfinite().all()
    assert not spec.features(tower, noise(1), -1).isfinite().any()


@pytest.mark.parametrize("name", TINY)
def test_half_precision(name):
    spec, tower = tiny_tower(name)
    frames = noise(1)
    wanted = spec.features(tower, frames, -2)
    found = spec.features(tower.bfloat16(), frames.bfloat16(), -2)
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_layers_that_do_not_exist_are_refused():
    spec, tower = tiny_tower("siglip")
    for layer in (-4, 0, 3, NORM):
        spec.check_layer(tower.config, layer)
    for layer in (-5, 4, "last", None, 1.0):
        with pytest.raises(ValueError, match="select_layer = .*'norm' or index one of the 4"):
            spec.check_layer(tower.config, layer)
    spec, tower = tiny_tower("internvideo2")
    with pytest.raises(ValueError, match="select_layer = 'norm' must index one of the 4"):
        spec.check_layer(tower.config, NORM)


def test_kinds_are_found_by_name_and_added_once():
    with pytest.raises(ValueError, match="kind = 'resnet' must be one of clip, dinov2, hf"):
        spec_of("resnet")
    with pytest.raises(ValueError, match="kind 'clip' is taken"):
        register("clip", KINDS["siglip"])


def test_features_of_clips_that_do_not_fit_are_refused():
    counted = chunked(lambda tower, frames, layer: frames, tubelet=2)
    with pytest.raises(ValueError, match="chunk = 3 must be a positive multiple of tubelet = 2"):
        counted(None, noise(), -2, 3)
    with pytest.raises(ValueError, match="frames must be"):
        counted(None, noise()[0], -2, 2)


def test_hf_refuses_what_has_no_grid_of_patches():
    spec = spec_of("hf")
    with pytest.raises(ValueError, match="'convnext', whose configuration has no num_hidden"):
        spec.grid(ConvNextConfig(num_hidden_layers=None), 32)
    swin = SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 1])
    tower = build_tower("hf", swin).eval()
    with pytest.raises(ValueError, match=r"gives \[1, 64, 16\] for a grid of 16 x 16"):
        spec.features(tower, noise(1, 1), NORM)


def test_a_spec_names_the_classes_of_its_first_type():
    for kind, spec in KINDS.items():
        assert isinstance(spec, EncoderSpec)
        if kind == "hf":
            assert spec.config_class.__name__ == "AutoConfig"
            assert spec.model_class.__name__ == "AutoModel"
        else:
            assert (spec.config_class, spec.model_class) == spec.classes[0]
