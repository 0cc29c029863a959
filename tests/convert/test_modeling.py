"""The PyTorch model: its input modes agree, and it returns what the published encoder returns."""

import dataclasses
import hashlib
import warnings

import numpy as np
import pytest
import torch

from codecvit import PatchSequence
from codecvit.convert import torch_input
from codecvit.convert.hf import configuration_onevision_encoder as configuration
from codecvit.convert.hf import modeling_onevision_encoder as modeling
from codecvit.models.vit import ViT

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SIDE, GRID = 14 * 4, 16  # frames of 4 x 4 patches


@pytest.fixture
def model(small, torch_model):
    return torch_model(*small)


def run(model, *arguments, **options):
    with torch.no_grad():
        return model(*arguments, **options)


def clip(frames, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, frames, SIDE, SIDE, generator=generator)


def test_version_names_this_modelling_file(root):
    code = (root / "src/convert/hf/modeling_onevision_encoder.py").read_bytes()
    expected = hashlib.sha256(code).hexdigest()[:12]
    assert expected == configuration.MODELING_VERSION, (
        "modeling_onevision_encoder.py changed: refresh MODELING_VERSION as docs/export.md says"
    )


def test_rotary_code_is_the_published_one():
    """Against the published formula in float64, one angle at a time."""
    rng = np.random.default_rng(0)
    position = np.array([37, 5, 11])
    x = rng.standard_normal(64)
    angles = [37 * 10000 ** (-i / 8) for i in range(8)]
    angles += [5 * 10000 ** (-i / 12) for i in range(12)]
    angles += [11 * 10000 ** (-i / 12) for i in range(12)]
    expected = np.empty(64)
    for channel in range(64):
        turned = -x[channel + 1] if channel % 2 == 0 else x[channel - 1]
        angle = angles[channel % 32]
        expected[channel] = x[channel] * np.cos(angle) + turned * np.sin(angle)
    tables = modeling.rotary_tables(torch.tensor(position)[None, None], 64, 1e4, torch.float32)
    out = modeling.rotate(torch.tensor(x, dtype=torch.float32)[None, None, None], *tables)
    np.testing.assert_allclose(out.flatten().numpy(), expected, atol=1e-5)


def test_angles_stay_float32_in_a_bfloat16_model(model):
    """Angles in bfloat16 would be off by up to 0.1 rad; here only the tables are rounded."""
    positions = torch.tensor([[[63, 9, 15]]])
    cos16, sin16 = modeling.rotary_tables(positions, 64, 1e4, torch.bfloat16)
    cos32, sin32 = modeling.rotary_tables(positions, 64, 1e4, torch.float32)
    assert cos16.dtype == torch.bfloat16
    torch.testing.assert_close(cos16, cos32.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(sin16, sin32.bfloat16(), rtol=0, atol=0)
    assert not dict(model.named_buffers())
    pixels = clip(4)
    expected = run(model, pixels).pooler_output
    half = run(model.to(torch.bfloat16), pixels).pooler_output
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().max() < 0.1


def test_three_ways_to_give_selected_patches_agree(model):
    """Gather from 64 frames == packed tiles with indices == packed tiles with positions."""
    video = clip(64)
    generator = torch.Generator().manual_seed(1)
    K = 2 * GRID
    index = torch.stack(
        [torch.randperm(64 * GRID, generator=generator)[:K].sort().values for _ in range(2)]
    )
    gathered = run(model, video, visible_indices=index, output_hidden_states=True)
    assert gathered.last_hidden_state.shape == (2, K, 64)

    patches = video.unfold(3, 14, 14).unfold(4, 14, 14).permute(0, 2, 3, 4, 1, 5, 6)
    patches = patches.reshape(2, 64 * GRID, 3, 14, 14)
    chosen = torch.stack([row[which] for row, which in zip(patches, index, strict=True)])
    tiles = chosen.reshape(2, K // GRID, 4, 4, 3, 14, 14).permute(0, 4, 1, 2, 5, 3, 6)
    packed = tiles.reshape(2, 3, K // GRID, SIDE, SIDE)
    by_index = run(model, packed, visible_indices=index)
    positions = torch.stack((index // GRID, index % GRID // 4, index % 4), -1)
    by_position = run(model, packed, patch_positions=positions)
    for other in (by_index, by_position):
        torch.testing.assert_close(
            other.last_hidden_state, gathered.last_hidden_state, rtol=0, atol=1e-5
        )
        torch.testing.assert_close(other.pooler_output, gathered.pooler_output, rtol=0, atol=1e-5)
    wrong = run(model, packed)  # the tiles as if they were two whole frames
    assert (wrong.pooler_output - gathered.pooler_output).abs().max() > 0.01


def test_video_without_positions_counts_its_frames(model):
    video = clip(3)
    positions = torch.tensor([[t, h, w] for t in range(3) for h in range(4) for w in range(4)])
    plain = run(model, video)
    for given in (positions, positions.expand(2, -1, -1)):
        same = run(model, video, patch_positions=given)
        torch.testing.assert_close(same.last_hidden_state, plain.last_hidden_state, rtol=0, atol=0)
    image = run(model, video[:, :, 0])
    single = run(model, video[:, :, :1])
    torch.testing.assert_close(image.pooler_output, single.pooler_output, rtol=0, atol=0)


def test_hidden_states_lie_where_the_published_ones_do(model):
    pixels = clip(2)
    out = run(model, pixels, output_hidden_states=True)
    assert len(out.hidden_states) == 3
    embedded = model.layernorm_pre(model.embeddings(pixels))
    torch.testing.assert_close(out.hidden_states[0], embedded, rtol=0, atol=0)
    after = model.layernorm_post(out.hidden_states[-1])
    torch.testing.assert_close(out.last_hidden_state, after, rtol=0, atol=0)
    assert out.attentions is None
    assert run(model, pixels).hidden_states is None


def test_tuple_output_and_order_of_arguments(model):
    pixels, index = clip(2)[:, :, :1], torch.arange(GRID).expand(2, -1)
    out = run(model, pixels, index, None, None, True, None)
    plain = run(model, pixels, index, output_hidden_states=True, return_dict=False)
    assert isinstance(plain, tuple)
    assert len(plain) == 3
    torch.testing.assert_close(plain[0], out.last_hidden_state)
    torch.testing.assert_close(plain[1], out.pooler_output)
    assert len(plain[2]) == len(out.hidden_states) == 3


def test_eager_and_sdpa_agree_and_only_eager_keeps_weights(small, torch_model):
    eager, sdpa = (torch_model(*small, attention=name) for name in ("eager", "sdpa"))
    pixels = clip(2)
    ours = run(eager, pixels, output_attentions=True)
    assert [tuple(weights.shape) for weights in ours.attentions] == [(2, 2, 32, 32)] * 2
    torch.testing.assert_close(ours.attentions[0].sum(-1), torch.ones(2, 2, 32))
    torch.testing.assert_close(
        ours.last_hidden_state, run(sdpa, pixels).last_hidden_state, rtol=0, atol=1e-5
    )
    with pytest.raises(ValueError, match=r"output_attentions.*sdpa.*eager"):
        run(sdpa, pixels, output_attentions=True)


def test_attention_comes_from_the_registry_of_transformers(small, torch_model):
    calls = []

    def recording(module, query, key, value, attention_mask, **options):
        calls.append((query.shape[2], key.shape[2], module.is_causal, attention_mask))
        return modeling.eager_attention(module, query, key, value, attention_mask, **options)

    modeling.ALL_ATTENTION_FUNCTIONS.register("recording", recording)
    model = torch_model(*small)
    expected = run(model, clip(1)).pooler_output
    model.set_attn_implementation("recording")
    out = run(model, clip(1)).pooler_output
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    assert calls == [(16, 16, False, None), (16, 16, False, None)]


def test_layer_norm_eps_reaches_the_norms(small, torch_model):
    config = dataclasses.replace(small[0], layer_norm_eps=0.05)
    model = torch_model(config, small[1])
    patches = np.random.default_rng(0).integers(0, 256, (1, 16, 588), np.uint8)
    positions = np.stack(np.unravel_index(np.arange(16), (1, 4, 4)), -1).astype(np.int32)
    ours = ViT(config).apply({"params": small[1]}, patches, positions[None])["tokens"]
    sequence = PatchSequence(patches[0].reshape(16, 14, 14, 3), positions)
    theirs = run(model, **torch_input(sequence)).last_hidden_state
    np.testing.assert_allclose(theirs.numpy(), np.asarray(ours), atol=1e-4)
    usual = run(torch_model(*small), **torch_input(sequence)).last_hidden_state
    assert (usual - theirs).abs().max() > 1e-2


def test_initial_weights():
    torch.manual_seed(0)
    config = configuration.OneVisionEncoderConfig(**{**CONFIG, "hidden_size": 128})
    weights = dict(modeling.OneVisionEncoderModel(config).named_parameters())
    for name, weight in weights.items():
        if name == "head.probe":
            assert 0.8 < weight.std() < 1.2
        elif name.endswith("in_proj_weight"):  # xavier: uniform of variance 2 / (D + 3D)
            assert 0.97 < weight.std() / (2 / 512) ** 0.5 < 1.03
        elif weight.ndim > 1:
            assert 0.95 < weight.std() / 0.02 < 1.05
        elif name.endswith("bias"):
            assert not weight.any()
        else:
            assert (weight == 1).all()


def test_gradient_checkpointing_gives_the_same_gradients(model):
    pixels = clip(1)

    def gradients():
        model.zero_grad()
        model(pixels).pooler_output.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    model.train()
    plain = gradients()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # 5.x calls it activation checkpointing
        model.gradient_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in model.encoder.layers)
    for name, grad in gradients().items():
        torch.testing.assert_close(grad, plain[name], rtol=1e-4, atol=1e-5)
        assert grad.abs().max() > 0, name


def test_without_head(small):
    config = configuration.OneVisionEncoderConfig(**CONFIG, use_head=False)
    model = modeling.OneVisionEncoderModel(config).eval()
    assert not any(name.startswith(("head", "layernorm_post")) for name in model.state_dict())
    out = run(model, clip(1), output_hidden_states=True)
    assert out.pooler_output is None
    assert torch.equal(out.last_hidden_state, out.hidden_states[-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: (torch.zeros(1, 1, 28, 28),), r"pixel_values.*\[1, 1, 28, 28\]"),
        (lambda: (torch.zeros(3, 28, 28),), r"pixel_values.*\[3, 28, 28\]"),
        (lambda: (torch.zeros(1, 3, 28, 30),), r"28 x 30.*patch side 14"),
        (
            lambda: (torch.zeros(1, 3, 65, 14, 14),),
            r"a video has 65 frames.*64 slots.*rope_temporal_size",
        ),
        (lambda: (torch.zeros(1, 3, 14, 28), None, torch.zeros(1, 3, 3)), r"3 rows for 2 tokens"),
        (lambda: (torch.zeros(1, 3, 14, 28), None, torch.zeros(1, 2, 2)), r"patch_positions.*2, 2"),
    ],
)
def test_what_does_not_fit_is_named(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(model, *arguments())


def test_more_frames_than_slots_with_positions_or_without_a_limit(model):
    video = torch.zeros(1, 3, 65, 14, 14)
    positions = torch.zeros(65, 3, dtype=torch.int64)
    positions[:, 0] = torch.arange(65)
    given = run(model, video, patch_positions=positions)
    model.config.rope_temporal_size = None
    torch.testing.assert_close(run(model, video).pooler_output, given.pooler_output)


def test_configuration_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match=r"hidden_size = 96.*num_attention_heads = 2"):
        configuration.OneVisionEncoderConfig(hidden_size=96, num_attention_heads=2)
    with pytest.raises(ValueError, match="layer_norm_type = 'rms_norm'"):
        configuration.OneVisionEncoderConfig(layer_norm_type="rms_norm")
