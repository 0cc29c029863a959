"""Padded rows and packed samples: each sample comes out as if it were alone, whoever attends."""

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from codecvit.convert import torch_input
from codecvit.convert.hf import modeling_onevision_encoder as modeling

LENGTHS = (23, 1, 50)
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")


def flash(module, query, key, value, attention_mask, scaling, dropout=0.0, **varlen):
    """Flash attention as transformers calls it: 2-D masks and cumulative lengths, nothing else."""
    B, H, S, d = query.shape
    if attention_mask is not None:
        assert attention_mask.shape == (B, S)
        rows = [row.nonzero()[:, 0] for row in attention_mask]
    elif varlen:
        ends = varlen["cu_seq_lens_q"]
        assert ends.dtype == torch.int32
        assert ends[-1] == S
        assert torch.equal(ends, varlen["cu_seq_lens_k"])
        assert varlen["max_length_q"] == varlen["max_length_k"] == max(ends.diff())
        rows = [torch.arange(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    else:
        rows = [torch.arange(S)] * B
    out = torch.zeros(B, S, H, d, dtype=query.dtype)
    for i, row in enumerate(rows):
        b = 0 if varlen else i
        sample = [x[b : b + 1, :, row] for x in (query, key, value)]
        out[b, row] = modeling.eager_attention(module, *sample, None, scaling)[0][0]
    return out, None


@pytest.fixture
def attention_model(small, torch_model, monkeypatch):
    """name -> the model with this attention; the flash ones, which need a GPU, are stood in for."""
    for name in ("flash_attention_2", "flash_attention_3"):
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, name, flash)

    def build(name):
        model = torch_model(*small)
        model.config._attn_implementation = name
        return model

    return build


@pytest.fixture(scope="module")
def sequences(make_sequence):
    return [make_sequence(seed, length=length) for seed, length in enumerate(LENGTHS)]


def run(model, **arguments):
    with torch.no_grad():
        return model(**arguments)


@pytest.fixture
def alone(small, torch_model, sequences):
    """The eager outputs of each sample by itself."""
    model = torch_model(*small, attention="eager")
    return [run(model, **torch_input(sequence)) for sequence in sequences]


def require_equal(tokens, pooled, alone):
    for t, p, expected in zip(tokens, pooled, alone, strict=True):
        torch.testing.assert_close(t, expected.last_hidden_state[0], rtol=0, atol=2e-5)
        torch.testing.assert_close(p, expected.pooler_output[0], rtol=0, atol=2e-5)


def pad_with_noise(arguments, shift=0):
    """Padding full of large numbers at other places of the grid; shifted, on both ends."""
    generator = torch.Generator().manual_seed(0)
    mask = arguments["attention_mask"]
    B, S = mask.shape
    pixels = arguments["pixel_values"].reshape(B, 3, 14, S, 14)
    noise = 1000 * torch.randn(pixels.shape, generator=generator)
    pixels = torch.where(mask[:, None, None, :, None], pixels, noise)
    positions = torch.where(mask[..., None], arguments["patch_positions"], 63)
    return {
        "pixel_values": pixels.roll(shift, 3).reshape(B, 3, 14, S * 14),
        "patch_positions": positions.roll(shift, 1),
        "attention_mask": mask.roll(shift, 1),
    }


@pytest.mark.parametrize("shift", [0, 7])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_padding_changes_no_number(attention_model, sequences, alone, name, shift):
    arguments = pad_with_noise(torch_input(sequences), shift)
    out = run(attention_model(name), **arguments)
    mask = arguments["attention_mask"]
    assert not out.last_hidden_state[~mask].any()
    tokens = [
        row.roll(-shift, 0)[:length]
        for row, length in zip(out.last_hidden_state, LENGTHS, strict=True)
    ]
    require_equal(tokens, out.pooler_output, alone)
    ignored = {key: value for key, value in arguments.items() if key != "attention_mask"}
    wrong = run(attention_model(name), **ignored).pooler_output
    assert (wrong - out.pooler_output)[:2].abs().max() > 0.01


def test_a_mask_of_integers_goes_with_gathered_tokens(small, torch_model):
    """`visible_indices` keep tokens; the mask, 0 and 1 as tokenizers make it, is over those."""
    model = torch_model(*small)
    video = torch.randn(1, 3, 4, 28, 28, generator=torch.Generator().manual_seed(1))
    index = torch.tensor([[1, 5, 10, 0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    out = run(model, pixel_values=video, visible_indices=index, attention_mask=mask)
    kept = run(model, pixel_values=video, visible_indices=index[:, :3])
    torch.testing.assert_close(out.pooler_output, kept.pooler_output, rtol=0, atol=1e-5)
    assert not out.last_hidden_state[0, 3].any()


@pytest.mark.parametrize("name", ATTENTIONS)
def test_packed_samples_come_out_as_if_alone(attention_model, sequences, alone, name):
    out = run(attention_model(name), **torch_input(sequences, packed=True))
    assert out.last_hidden_state.shape == (sum(LENGTHS), 64)
    require_equal(out.last_hidden_state.split(LENGTHS), out.pooler_output, alone)


@pytest.mark.slow  # compiles kernels in C++
def test_flex_attention(attention_model, sequences, alone):
    model = attention_model("flex_attention")
    arguments = pad_with_noise(torch_input(sequences))
    out = run(model, **arguments)
    tokens = [row[:n] for row, n in zip(out.last_hidden_state, LENGTHS, strict=True)]
    require_equal(tokens, out.pooler_output, alone)
    out = run(model, **torch_input(sequences, packed=True))
    require_equal(out.last_hidden_state.split(LENGTHS), out.pooler_output, alone)
    single = run(model, **torch_input(sequences[0]))
    require_equal(single.last_hidden_state, single.pooler_output, alone[:1])


def test_flex_attention_gets_a_block_mask(attention_model, sequences, alone, monkeypatch):
    """The dispatch without the kernels: the mask that flex attention is given, made dense."""
    from torch.nn.attention.flex_attention import create_mask

    def flex(module, query, key, value, attention_mask, scaling, **_):
        B, S = query.shape[0], query.shape[2]
        dense = create_mask(attention_mask.mask_mod, B, None, S, S, device="cpu")
        return modeling.eager_attention(module, query, key, value, dense, scaling)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flex_attention", flex)
    model = attention_model("flex_attention")
    out = run(model, **torch_input(sequences, packed=True))
    require_equal(out.last_hidden_state.split(LENGTHS), out.pooler_output, alone)
    out = run(model, **pad_with_noise(torch_input(sequences)))
    tokens = [row[:n] for row, n in zip(out.last_hidden_state, LENGTHS, strict=True)]
    require_equal(tokens, out.pooler_output, alone)


def test_packed_gradients_are_those_of_single_samples(small, torch_model, sequences):
    model = torch_model(*small).train()

    def gradients(*batches):
        model.zero_grad()
        for arguments in batches:
            out = model(**arguments)
            loss = out.pooler_output.square().sum() + out.last_hidden_state.square().sum()
            loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    packed = gradients(torch_input(sequences, packed=True))
    padded = gradients(torch_input(sequences))
    for name, grad in gradients(*map(torch_input, sequences)).items():
        for other in (packed[name], padded[name]):
            assert (other - grad).abs().max() < 1e-4 * grad.abs().max(), name


def test_large_scores_stay_finite_and_apart(small, torch_model, sequences):
    """One segment's scores lie far below another's: each softmax has its own maximum."""
    scores = torch.tensor([[0.0], [1.0], [-500.0], [-501.0], [800.0]])
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None, None]
    out = modeling.segment_mean(scores, values, torch.tensor([0, 0, 1, 1, 2]), 3)[:, 0, 0]
    low = 1 / (1 + torch.e)
    torch.testing.assert_close(out, torch.tensor([2 - low, 3 + low, 5.0]))


def test_grids_place_packed_patches(small, torch_model):
    """A grid counts frames in raster order; positions beside it take their place."""
    model = torch_model(*small)
    generator = torch.Generator().manual_seed(2)
    patches = torch.randn(2 * 6 + 3, 588, generator=generator)
    grid = torch.tensor([[2, 2, 3], [1, 3, 1]])
    positions = [[t, h, w] for t in range(2) for h in range(2) for w in range(3)]
    positions = torch.tensor(positions + [[0, h, 0] for h in range(3)])
    by_grid = run(model, pixel_values=patches, grid_thw=grid)
    lengths = torch.tensor([12, 3])
    given = run(model, pixel_values=patches, patch_positions=positions, lengths=lengths)
    assert torch.equal(by_grid.pooler_output, given.pooler_output)
    spread = positions * torch.tensor([63, 1, 1])
    both = run(model, pixel_values=patches, grid_thw=grid, patch_positions=spread)
    given = run(model, pixel_values=patches, patch_positions=spread, lengths=lengths)
    assert torch.equal(both.pooler_output, given.pooler_output)
    assert (both.pooler_output - by_grid.pooler_output)[0].abs().max() > 1e-3
    single = run(model, pixel_values=patches, patch_positions=positions)
    assert single.pooler_output.shape == (1, 64)


FLAT = torch.zeros(6, 588)
POSITIONS = torch.zeros(6, 3, dtype=torch.int64)
IMAGE = torch.zeros(1, 3, 14, 28)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel_values": torch.zeros(6, 587)}, r"\[total, 588\], got \[6, 587\]"),
        ({"pixel_values": FLAT}, "need grid_thw or patch_positions"),
        ({"pixel_values": FLAT, "lengths": torch.tensor([6])}, "need grid_thw or patch_positions"),
        ({"pixel_values": FLAT, "grid_thw": torch.tensor([[1, 1, 5]])}, r"say \[5\].*the 6 of"),
        (
            {
                "pixel_values": FLAT,
                "patch_positions": POSITIONS,
                "lengths": torch.tensor([6, 0]),
            },
            r"say \[6, 0\]",
        ),
        ({"pixel_values": FLAT, "patch_positions": POSITIONS[:5]}, "5 rows for 6 tokens"),
        ({"pixel_values": FLAT, "patch_positions": POSITIONS[None]}, r"\[total, 3\], got \[1, 6"),
        (
            {
                "pixel_values": FLAT,
                "grid_thw": torch.tensor([[1, 2, 3]]),
                "lengths": torch.tensor([6]),
            },
            "drop one",
        ),
        ({"pixel_values": FLAT, "attention_mask": torch.ones(1, 6)}, r"pixel_values is \[6, 588\]"),
        ({"pixel_values": IMAGE, "lengths": torch.tensor([2])}, r"packed.*is \[1, 3, 14, 28\]"),
        ({"pixel_values": IMAGE, "grid_thw": torch.tensor([[1, 1, 2]])}, "grid_thw and lengths"),
        (
            {"pixel_values": IMAGE, "attention_mask": torch.ones(1, 3)},
            r"attention_mask is \[1, 3\] for \[1, 2\]",
        ),
        (
            {"pixel_values": torch.zeros(65, 588), "grid_thw": torch.tensor([[65, 1, 1]])},
            "a video has 65 frames",
        ),
    ],
)
def test_what_does_not_fit_is_named(small, torch_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(torch_model(*small), **arguments)


def test_packed_attention_weights_are_refused(small, torch_model):
    model = torch_model(*small, attention="eager")
    with pytest.raises(ValueError, match="not there for packed"):
        run(model, pixel_values=FLAT, patch_positions=POSITIONS, output_attentions=True)
