"""LanguageBind-Video against CLIP, against a block written out, and under its published names."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from codecvit.llava.encoders.languagebind import LanguageBindVideoConfig, LanguageBindVideoModel
from codecvit.llava.encoders.registry import spec_of

from .made import noise, stir, tiny_tower


def test_without_its_attention_over_time_it_is_clip():
    spec, tower = tiny_tower("languagebind_video", hidden_act="quick_gelu")
    for name, parameter in tower.named_parameters():
        if "temporal_attn.out_proj" in name or "temporal_embedding" in name:
            parameter.data.zero_()
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    fields += ("image_size", "patch_size", "hidden_act")
    clip = CLIPVisionModel(CLIPVisionConfig(**{n: getattr(tower.config, n) for n in fields})).eval()
    own = tower.vision_model.state_dict()
    shared = {k: v for k, v in own.items() if "temporal" not in k}
    theirs = {k.removeprefix("vision_model.") for k, _ in clip.named_parameters()}
    assert set(shared) == theirs  # so published CLIP names are these
    holder = getattr(clip, "vision_model", clip)
    holder.load_state_dict(shared, strict=True)
    frames = noise()
    pixels = frames.movedim(-1, -3).flatten(0, 1)
    states = clip(pixels, output_hidden_states=True).hidden_states
    for layer in (0, 1, -2, -1):
        ours = spec.features(tower, frames, layer)
        torch.testing.assert_close(ours.flatten(0, 1), states[layer][:, 1:], rtol=1e-4, atol=1e-5)


def attention(x, part, heads):
    """Softmax attention written out; x [S, D] of one sequence."""

    def split(name):
        linear = getattr(part, name)
        return (x @ linear.weight.T + linear.bias).view(len(x), heads, -1)

    query, key, value = split("q_proj"), split("k_proj"), split("v_proj")
    scores = torch.einsum("shd,thd->hst", query, key) / query.shape[-1] ** 0.5
    mixed = torch.einsum("hst,thd->shd", scores.softmax(-1), value).reshape(x.shape)
    return mixed @ part.out_proj.weight.T + part.out_proj.bias


def test_a_block_attends_over_time_then_over_places():
    """As described: time embedding, attention of each place over frames, of each frame, MLP."""
    _, tower = tiny_tower("languagebind_video")
    block, heads = tower.vision_model.encoder.layers[0], 2
    x = torch.randn(1, 4, 5, 32, generator=torch.Generator().manual_seed(0))
    y = x[0] + block.temporal_embedding[0][:, None]
    normed = block.temporal_layer_norm1(y)
    y = y + torch.stack([attention(normed[:, m], block.temporal_attn, heads) for m in range(5)], 1)
    normed = block.layer_norm1(y)
    y = y + torch.stack([attention(normed[t], block.self_attn, heads) for t in range(4)])
    hidden = F.gelu(block.layer_norm2(y) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
    y = y + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    torch.testing.assert_close(block(x)[0], y, rtol=1e-4, atol=1e-5)


def test_the_order_of_frames_matters():
    spec, tower = tiny_tower("languagebind_video")
    frames = noise(1)
    turned = spec.features(tower, frames.flip(1), -2).flip(1)
    assert not torch.allclose(turned, spec.features(tower, frames, -2), atol=1e-3)


@pytest.mark.parametrize("name", ("languagebind_video", "internvideo2"))
@pytest.mark.parametrize("implementation", ("eager", "flex_attention"))
def test_attention_implementations_agree(name, implementation):
    spec, tower = tiny_tower(name)
    with torch.no_grad():
        tower.set_attn_implementation("sdpa")
        wanted = spec.features(tower, noise(1), -2)
        tower.set_attn_implementation(implementation)
        found = spec.features(tower, noise(1), -2)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_names_and_shapes_of_the_published_size():
    """As the published ViT-L/14 folder lists them, by the code that wrote it."""
    with torch.device("meta"):
        model = LanguageBindVideoModel(LanguageBindVideoConfig())
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    stem = "vision_model."
    assert shapes[f"{stem}embeddings.class_embedding"] == (1024,)
    assert shapes[f"{stem}embeddings.patch_embedding.weight"] == (1024, 3, 14, 14)
    assert shapes[f"{stem}embeddings.position_embedding.weight"] == (257, 1024)
    block = f"{stem}encoder.layers.23."
    assert shapes[f"{block}temporal_embedding"] == (1, 8, 1024)
    assert shapes[f"{block}temporal_layer_norm1.bias"] == (1024,)
    for part in ("self_attn", "temporal_attn"):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            assert shapes[f"{block}{part}.{name}.weight"] == (1024, 1024)
            assert shapes[f"{block}{part}.{name}.bias"] == (1024,)
    assert shapes[f"{block}mlp.fc1.weight"] == (4096, 1024)
    # Blocks: two attentions of 8, an MLP of 4, three norms of 2, the times; stem 3, two norms of 2.
    assert len(shapes) == 24 * (2 * 8 + 4 + 3 * 2 + 1) + 3 + 2 + 2


def test_the_tower_for_images_is_refused():
    with pytest.raises(ValueError, match="add_time_attn = False"):
        LanguageBindVideoConfig(add_time_attn=False)


def test_defaults_are_those_that_were_published():
    spec = spec_of("languagebind_video")
    assert (spec.chunk, spec.resize, spec.select_layer) == (8, "crop", -2)
    assert spec.chunk_of(LanguageBindVideoConfig()) == 8
    assert spec.grid(LanguageBindVideoConfig(), None) == (16, 16)


def test_gradient_checkpointing_changes_no_gradient():
    spec, tower = tiny_tower("languagebind_video")
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            tower.gradient_checkpointing_enable({"use_reentrant": False})
        stir(tower).train().zero_grad()
        spec.features(tower, noise(1), -2).square().sum().backward()
        grads.append(tower.vision_model.encoder.layers[0].mlp.fc1.weight.grad.clone())
    torch.testing.assert_close(*grads)
