"""InternVideo2's vision encoder against a block written out, and under its published names."""

from __future__ import annotations

import math

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from codecvit.llava.encoders.internvideo2 import InternVideo2Config, InternVideo2VisionModel
from codecvit.llava.encoders.registry import spec_of

from .made import noise, stir, tiny_tower


def rms(x, norm):
    """Root mean square normalisation as another model has it."""
    other = LlamaRMSNorm(len(norm.weight), eps=1e-6)
    other.weight.data.copy_(norm.weight)
    return other(x)


def test_a_block_is_as_described():
    """RMS norms; queries and keys normalised over all heads together; both branches scaled."""
    _, tower = tiny_tower("internvideo2")
    block, heads = tower.blocks[0], 2
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    query, key, value = (rms(x, block.norm1) @ block.attn.qkv.weight.T).split(32, dim=-1)
    query, key = rms(query, block.attn.q_norm), rms(key, block.attn.k_norm)
    mixed = torch.zeros(5, 32)
    for head in range(heads):
        part = slice(16 * head, 16 * head + 16)
        scores = query[:, part] @ key[:, part].T / math.sqrt(16)
        mixed[:, part] = scores.softmax(-1) @ value[:, part]
    mixed = mixed @ block.attn.proj.weight.T + block.attn.proj.bias
    y = x + mixed * block.ls1.gamma
    hidden = rms(y, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))  # GELU, exact
    y = y + (hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias) * block.ls2.gamma
    torch.testing.assert_close(block(x[None])[0], y, rtol=1e-4, atol=1e-5)


def test_an_image_has_positions_of_its_own():
    spec, tower = tiny_tower("internvideo2")
    clip, image = noise(1), noise(1, 1)
    before = spec.features(tower, clip, -2), spec.features(tower, image, -2)
    tower.img_pos_embed.data.add_(1)
    after = spec.features(tower, clip, -2), spec.features(tower, image, -2)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1], atol=1e-3)
    tower.img_pos_embed.data.sub_(1)
    tower.pos_embed.data.add_(1)
    after = spec.features(tower, clip, -2), spec.features(tower, image, -2)
    assert not torch.allclose(before[0], after[0], atol=1e-3)
    torch.testing.assert_close(before[1], after[1])


def test_every_frame_of_a_chunk_sees_the_others():
    """One attention over all tokens of the clip, and the class token of the clip among them."""
    spec, tower = tiny_tower("internvideo2")
    clip = noise(1)
    changed = clip.clone()
    changed[:, 0, :8, :8] += 1
    moved = (spec.features(tower, changed, -2) - spec.features(tower, clip, -2)).abs().amax(-1)
    assert (moved > 1e-5).all()


def test_names_and_shapes_of_the_published_size():
    """As `InternVideo2-stage2_1b-224p-f4.pt` lists them behind `vision_encoder.`."""
    with torch.device("meta"):
        model = InternVideo2VisionModel(InternVideo2Config())
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    wanted = {
        "cls_token": (1, 1, 1408),
        "pos_embed": (1, 4 * 256 + 1, 1408),
        "img_pos_embed": (1, 257, 1408),
        "patch_embed.proj.weight": (1408, 3, 1, 14, 14),
        "patch_embed.proj.bias": (1408,),
    }
    for number in range(40):
        block = {
            "norm1.weight": (1408,),
            "norm2.weight": (1408,),
            "attn.qkv.weight": (4224, 1408),
            "attn.q_norm.weight": (1408,),
            "attn.k_norm.weight": (1408,),
            "attn.proj.weight": (1408, 1408),
            "attn.proj.bias": (1408,),
            "ls1.gamma": (1408,),
            "ls2.gamma": (1408,),
            "mlp.fc1.weight": (6144, 1408),
            "mlp.fc1.bias": (6144,),
            "mlp.fc2.weight": (1408, 6144),
            "mlp.fc2.bias": (1408,),
        }
        wanted |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    assert shapes == wanted


def test_defaults_are_those_that_were_published():
    spec = spec_of("internvideo2")
    assert (spec.chunk, spec.resize, spec.select_layer) == (4, "squash", -2)
    assert spec.chunk_of(InternVideo2Config()) == 4
    assert spec.grid(InternVideo2Config(), None) == (16, 16)
    assert spec.image_mean == (0.485, 0.456, 0.406)


def test_gradient_checkpointing_changes_no_gradient():
    spec, tower = tiny_tower("internvideo2")
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            tower.gradient_checkpointing_enable({"use_reentrant": False})
        stir(tower).train().zero_grad()
        spec.features(tower, noise(1), -2).square().sum().backward()
        grads.append(tower.blocks[0].mlp.fc1.weight.grad.clone())
    torch.testing.assert_close(*grads)
