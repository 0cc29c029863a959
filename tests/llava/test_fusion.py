"""Fusion of several encoders' tokens: weights, order, absence, gradients, MERV's weights."""

import itertools

import pytest
import torch
from torch import nn

from codecvit.llava.model.fusion import CHANNELS, FUSIONS, TOKENS, WEIGHTED, Fusion, reset_fusion

NAMES = ("video", "image", "text")
C = 12
EQUAL = (*WEIGHTED, *CHANNELS)
LEARNED = ("score", "mha_compat", "scalar")


def make(kind, names=NAMES, seed=0, width=C, **options):
    """A fusion with weights that matter; equal seeds give equal weights to equal names."""
    fusion = Fusion(kind, names, width, query=8, **options)
    torch.manual_seed(seed)
    for module in fusion.modules():
        reset_fusion(module)
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(fusion.named_parameters()):
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return fusion


def set_score_vector(fusion, u_C):
    """Makes the `score_vector` of a form "score" this one."""
    with torch.no_grad():
        fusion.vector.copy_(u_C * fusion.width**0.5)


def seen(counts=((4, 3),) * 3, names=NAMES, seed=1, width=C):
    """Tokens and counts of each encoder; the same for a name whatever stands beside it."""
    tokens = {}
    for name, count in zip(names, counts, strict=True):
        generator = torch.Generator().manual_seed(seed + NAMES.index(name))
        tokens[name] = torch.randn(sum(count), width, generator=generator)
    return tokens, {n: torch.tensor(c) for n, c in zip(names, counts, strict=True)}


@pytest.mark.parametrize("kind", WEIGHTED)
def test_weights_add_up_to_one_and_mix_the_tokens(kind):
    tokens, counts = seen()
    out, total, weights = make(kind)(tokens, counts)
    assert total.tolist() == [4, 3]
    assert weights.shape == (2, 3) and weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    owner = torch.tensor([0] * 4 + [1] * 3)
    expected = sum(weights[owner, e, None] * tokens[name] for e, name in enumerate(NAMES))
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("kind", FUSIONS)
def test_the_order_of_encoders(kind):
    """It changes no bit; only concat and first mean it, and there blocks and choice move along."""
    tokens, counts = seen()
    expected, _, weights = make(kind)(tokens, counts)
    for names in itertools.permutations(NAMES):
        fusion = Fusion(kind, names, C, query=8)
        fusion.load_state_dict(make(kind).state_dict())
        # dual_stream is given its order by the configuration, which makes it of the encoders alone
        out, _, again = fusion(tokens, counts)
        if kind == "first":
            assert torch.equal(out, tokens[names[0]])
        elif kind in TOKENS:
            per_visual = [[tokens[n].split([4, 3])[v] for n in names] for v in range(2)]
            assert torch.equal(out, torch.cat([x for visual in per_visual for x in visual]))
        else:
            assert torch.equal(out, expected)
            if weights is not None:
                assert torch.equal(again, weights[:, [NAMES.index(n) for n in names]])


@pytest.mark.parametrize("kind", WEIGHTED)
def test_equal_encoders_give_their_tokens(kind):
    tokens, counts = seen()
    same = dict.fromkeys(NAMES, tokens["video"])
    out, _, _ = make(kind)(same, counts)
    torch.testing.assert_close(out, tokens["video"])


@pytest.mark.parametrize("kind", FUSIONS)
def test_one_encoder_is_the_identity(kind):
    tokens, counts = seen(((4, 3),), ("image",))
    fusion = make(kind, ("image",), bias=True)
    out, total, weights = fusion(tokens, counts)
    assert torch.equal(out, tokens["image"]) and total.tolist() == [4, 3]
    assert not list(fusion.parameters())
    assert weights is None or torch.equal(weights, torch.ones(2, 1))


@pytest.mark.parametrize("width", [C, 8], ids=["wider", "as-wide-as-the-query"])
def test_mha_compat_is_the_attention_that_merv_trains_and_equals_score(width):
    """Also against torch's module, of which MERV keeps the weights of the keys."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 1, kdim=width, vdim=width, batch_first=True)
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    query = torch.randn(1, 1, 8)
    fusion = make("mha_compat", width=width)
    fusion.attention.load_multihead(attention.state_dict(), query)
    tokens, counts = seen(width=width)
    out, _, weights = fusion(tokens, counts)
    keys = torch.stack(
        [torch.stack([part.mean(0) for part in tokens[n].split([4, 3])]) for n in NAMES], dim=1
    )
    with torch.no_grad():
        expected = attention(query.expand(2, -1, -1), keys, keys)[1][:, 0]
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)

    score = make("score", width=width)
    state = fusion.attention.state_dict()
    u = state["k_weight"].T @ (state["q_weight"] @ state["query"] + state["q_bias"]) / 8**0.5
    torch.testing.assert_close(fusion.score_vector(), u)
    set_score_vector(score, u)
    again, _, same = score(tokens, counts)
    torch.testing.assert_close(same, weights, rtol=0, atol=1e-6)
    torch.testing.assert_close(again, out, rtol=0, atol=1e-5)


def test_an_embedding_added_to_the_keys_is_one_number_per_encoder():
    tokens, counts = seen()
    fusion = make("score", bias=True)
    embedding = {name: torch.randn(C) for name in NAMES}
    for name in NAMES:
        with torch.no_grad():
            fusion.logits[name].copy_(fusion.score_vector() @ embedding[name])
    plain = make("score", bias=False)
    set_score_vector(plain, fusion.score_vector().detach())
    moved = {name: tokens[name] + embedding[name] for name in NAMES}
    torch.testing.assert_close(fusion(tokens, counts)[2], plain(moved, counts)[2])
    assert not torch.allclose(fusion(tokens, counts)[2], plain(tokens, counts)[2])


def test_weights_that_are_no_such_attention_are_refused():
    fusion = make("mha_compat")
    state = nn.MultiheadAttention(8, 1, kdim=C, vdim=C).state_dict()
    with pytest.raises(ValueError, match="v_proj_weight"):
        fusion.attention.load_multihead(
            {n: x for n, x in state.items() if n != "v_proj_weight"}, torch.zeros(8)
        )
    with pytest.raises(ValueError, match="query of 9 values"):
        fusion.attention.load_multihead(state, torch.zeros(9))
    with pytest.raises(ValueError, match="strange"):
        fusion.attention.load_multihead({**state, "strange": torch.zeros(1)}, torch.zeros(8))


def test_sizes_of_the_published_fusion():
    """22,026,240 of MERV's 44,055,552 parameters can have a gradient; of score it is the width."""
    with torch.device("meta"):
        merv = Fusion("mha_compat", NAMES, 4096)
        score = Fusion("score", NAMES, 4096)
    assert sum(p.numel() for p in merv.parameters()) == 22_026_240
    assert sum(p.numel() for p in score.parameters()) == 4096


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [*LEARNED, *CHANNELS])
def test_every_parameter_has_a_gradient(kind, bias):
    """Score and scalar as they begin; no form holds a parameter that nothing depends on."""
    fusion = make(kind, bias=bias)
    if kind in ("score", "scalar"):
        fusion.reset()
    tokens, counts = seen()
    out, _, _ = fusion(tokens, counts)
    out.square().sum().backward()
    assert list(fusion.parameters())
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None and parameter.grad.ne(0).all(), name


@pytest.mark.parametrize("kind", FUSIONS)
def test_an_absent_encoder_has_no_influence(kind):
    """And the others are as if it had never been."""
    fusion = make(kind)
    tokens, counts = seen()
    whole, _, _ = fusion(tokens, counts)
    counts["image"] = torch.tensor([4, 0])  # the second visual is without it
    tokens["image"] = tokens["image"][:4]
    out, total, weights = fusion(tokens, counts)
    both = [n for n in NAMES if n != "image"]
    start = 12 if kind in TOKENS else 4
    assert torch.equal(out[:start], whole[:start])
    if kind in TOKENS:
        assert total.tolist() == [12, 6]
        alone = torch.cat([tokens[n][4:] for n in both])
        assert torch.equal(out[start:], alone)
        return
    assert total.tolist() == [4, 3]
    if kind in CHANNELS:
        assert torch.isfinite(out).all() and not torch.allclose(out[4:], whole[4:])
        return
    fewer = Fusion(kind, both, C, query=8)
    state = {n: x for n, x in fusion.state_dict().items() if n != "logits.image"}
    fewer.load_state_dict(state)
    expected, _, two = fewer({n: tokens[n] for n in both}, {n: counts[n] for n in both})
    torch.testing.assert_close(out[4:], expected[4:])
    torch.testing.assert_close(weights[1, [0, 2]], two[1])
    assert weights[1, 1] == 0


def test_first_takes_the_first_that_is_there():
    tokens, counts = seen(((0, 3), (4, 3), (4, 3)))
    out, _, weights = make("first")(tokens, counts)
    assert weights.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert torch.equal(out, torch.cat([tokens["image"][:4], tokens["video"]]))


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_visual_that_nobody_sees_is_an_error(kind):
    tokens, counts = seen(((4, 0), (4, 0), (4, 0)))
    with pytest.raises(ValueError, match="visual 1 is seen by no encoder"):
        make(kind)(tokens, counts)


@pytest.mark.parametrize("kind", FUSIONS)
def test_unequal_numbers_of_tokens(kind):
    tokens, counts = seen(((4, 3), (4, 2), (1, 3)))
    if kind in TOKENS:
        out, total, _ = make(kind)(tokens, counts)
        assert total.tolist() == [9, 8]
        parts = [(n, slice(0, c)) for n, c in zip(NAMES, (4, 4, 1), strict=True)]
        parts += [(n, slice(c, None)) for n, c in zip(NAMES, (4, 4, 1), strict=True)]
        assert torch.equal(out, torch.cat([tokens[n][part] for n, part in parts]))
    else:
        with pytest.raises(ValueError, match=r"image \[4, 2\].*concat or dual_stream"):
            make(kind)(tokens, counts)


@pytest.mark.parametrize("norm", [False, True])
def test_channels_are_one_linear_map(norm):
    """Of all channels side by side, in the order of the names; with LayerNorm, torch's."""
    fusion = make("concat_channel_ln" if norm else "concat_channel")
    tokens, counts = seen()
    out, _, _ = fusion(tokens, counts)
    names, channels = sorted(NAMES), fusion.channels
    x = torch.cat([tokens[n] for n in names], dim=1)
    if norm:
        gain = torch.cat([channels.gain[n] for n in names])
        shift = torch.cat([channels.shift[n] for n in names])
        x = nn.functional.layer_norm(x, (3 * C,), gain, shift)
    weight = torch.cat([channels.weight[n] for n in names], dim=1)
    expected = nn.functional.linear(x, weight, channels.bias)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_weights_are_softmaxed_in_float32():
    """Scores 100 and 100.2 are one number in bfloat16, and not in the weights."""
    fusion = Fusion("score", ("a", "b"), 1)
    set_score_vector(fusion, torch.tensor([100.0]))
    fusion.bfloat16()
    tokens = {"a": torch.tensor([[1.0]]), "b": torch.tensor([[1.0078125]])}
    tokens = {n: x.bfloat16() for n, x in tokens.items()}
    counts = {n: torch.tensor([1]) for n in tokens}
    out, _, weights = fusion(tokens, counts)
    assert out.dtype == torch.bfloat16 and weights.dtype == torch.float32
    assert weights[0, 1] / weights[0, 0] > 2
