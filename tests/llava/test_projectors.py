"""Projectors: sizes, published parameter counts, and what each does to tokens at known places."""

import itertools

import pytest
import torch
from torch import nn

from codecvit.llava import LlavaConfig
from codecvit.llava.model.pooling import arrange
from codecvit.llava.model.projectors import Projector, init_weights

from .conftest import language_config, vision_config

NAMES = [
    "linear",
    "mlp1x_gelu",
    "mlp2x_gelu",
    "mlp3x_gelu",
    "3davg+linear",
    "3davg+mlp2x_gelu",
    "3dconv+linear",
    "3dconv+mlp2x_gelu",
    "attentive+linear",
    "attentive+mlp2x_gelu",
    "merger",
]


def plan_of(config, positions, grid):
    return arrange(config, positions, torch.tensor([len(positions)]), torch.tensor([[*grid]]))


def make(config, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    projector = Projector(config)
    projector.apply(init_weights)
    return projector.to(dtype)


def run(projector, config, features, positions, grid):
    return projector(features, positions, plan_of(config, positions, grid))


def dense(T, H, W):
    return torch.cartesian_prod(torch.arange(T), torch.arange(H), torch.arange(W))


def count(projector, inner, width, **fields):
    """Parameters of a projector between these widths, without making them."""
    heads = inner // 32
    config = LlavaConfig(
        vision_config(hidden_size=inner, num_attention_heads=heads),
        language_config(hidden_size=width),
        projector=projector,
        **fields,
    )
    with torch.device("meta"):
        return sum(p.numel() for p in Projector(config).parameters())


def test_parameter_counts_are_the_published_ones():
    """MERV: 3davg+linear and 3dconv+linear into Llama-2 7B. VideoGPT+: mlp2x_gelu into Phi-3."""
    assert count("3davg+linear", 1024, 4096) == 4_198_400
    assert count("3davg+linear", 768, 4096) == 3_149_824
    assert round(count("3dconv+linear", 1024, 4096) / 1e5) == 1300
    assert round(count("3dconv+linear", 768, 4096) / 1e5) == 1017
    assert count("mlp2x_gelu", 1408, 3072) == 13_768_704
    assert count("mlp2x_gelu", 1024, 3072) == 12_589_056


@pytest.mark.parametrize(("D", "E"), [(64, 32), (96, 200)])
def test_parameter_counts_follow_their_formulas(D, E):
    assert count("linear", D, E) == D * E + E
    for k in (1, 2, 5):
        mlp = (D + 1) * E + (k - 1) * (E + 1) * E
        assert count(f"mlp{k}x_gelu", D, E) == count(f"3davg+mlp{k}x_gelu", D, E) == mlp
    conv = 27 * D * E + E
    assert count("3dconv+linear", D, E) == conv + (E + 1) * E
    assert count("3dconv+mlp2x_gelu", D, E) == conv + 2 * (E + 1) * E
    # Queries, q + kv + out, MLP of ratio 4, two norms; then the projection.
    pooler = 6 * D + 4 * (D + 1) * D + (8 * D * D + 5 * D) + 4 * D
    assert count("attentive+linear", D, E, pool=(9, 2, 3)) == pooler + (D + 1) * E
    assert count("merger", D, E) == 2 * D + (4 * D + 1) * 4 * D + (4 * D + 1) * E
    code = 6 * 32 * D
    assert count("linear", D, E, position_embedding="sincos") == (D + 1) * E + code
    learned = {"pool_level": 2, "pool_empty": "learned"}
    assert count("linear", D, E, **learned) == (D + 1) * E + D
    assert count("linear", D, E, pool_first=False, **learned) == (D + 1) * E + E


@pytest.mark.parametrize(
    "name",
    ["mlp", "mlp0x_gelu", "mlp2x_relu", "3davg", "3davg+merger", "pooler", "linear+3davg", ""],
)
def test_unknown_names_are_refused(name, make_config):
    with pytest.raises(ValueError, match=f"projector = {name!r}".replace("+", r"\+")):
        make_config(projector=name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": (16, 8)}, r"pool = \[16, 8\]"),
        ({"pool": (16, 0, 8)}, r"pool = \[16, 0, 8\]"),
        ({"pool_level": -1}, "pool_level = -1"),
        ({"pool_level": 1.5}, "pool_level = 1.5"),
        ({"pool_level": 2, "projector": "merger"}, "pool_level = 2 has no effect"),
        ({"pool_level": 2, "projector": "attentive+linear"}, "pool_level = 2 has no effect"),
        ({"pool_empty": "zero"}, "pool_empty = 'zero'"),
        ({"position_embedding": "learned"}, "position_embedding = 'learned'"),
        ({"template": "alpaca"}, "template = 'alpaca'"),
        ({"vision_select_layer": 4}, "vision_select_layer = 4 must index one of the 4"),
        ({"vision_select_layer": -5}, "vision_select_layer = -5 must index one of the 4"),
    ],
)
def test_configurations_without_meaning_are_refused(fields, message, make_config):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


@pytest.mark.parametrize("name", NAMES)
def test_each_projector_gives_tokens_of_the_language_models_width(name, make_config, visual):
    config = make_config(projector=name, pool=(2, 2, 2))
    _, positions, grid = visual(0, frames=3, rows=4, columns=5, keep=31)
    features = torch.randn(31, 64, dtype=torch.float64, requires_grad=True)
    projector = make(config)
    plan = plan_of(config, positions, grid)
    tokens = projector(features, positions, plan)
    assert tokens.shape == (int(plan.counts_V), 32)
    tokens.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in projector.parameters())
    assert (features.grad.abs().sum(1) > 0).all()  # every patch is seen


@pytest.mark.parametrize("name", NAMES)
def test_tokens_do_not_depend_on_the_order_of_patches(name, make_config, visual):
    """Unpooled tokens move with their patches; all others don't move."""
    config = make_config(projector=name, pool=(2, 2, 2), position_embedding="sincos")
    _, positions, grid = visual(0, frames=3, rows=4, columns=5, keep=31)
    features = torch.randn(31, 64, dtype=torch.float64)
    projector = make(config)
    nn.init.normal_(projector.code.weight, std=0.1)
    tokens = run(projector, config, features, positions, grid)
    order = torch.randperm(31, generator=torch.Generator().manual_seed(0))
    moved = run(projector, config, features[order], positions[order], grid)
    per_patch = not config.pools and name != "merger"
    torch.testing.assert_close(moved, tokens[order] if per_patch else tokens)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_projector_whatever_was_drawn_before(name, make_config):
    config = make_config(projector=name)
    first = make(config, seed=3)
    torch.randn(100)
    for a, b in zip(first.parameters(), make(config, seed=3).parameters(), strict=True):
        assert torch.equal(a, b)
    weights = [p for p in first.parameters() if p.ndim > 1]
    others = [p for p in make(config, seed=4).parameters() if p.ndim > 1]
    assert not any(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


def test_pooling_commutes_with_linear_maps_only(make_config, visual):
    """Which is why `pool_first` is saved."""
    _, positions, grid = visual(0, frames=3, rows=5, columns=5, keep=50)
    features = torch.randn(50, 64, dtype=torch.float64)

    def both(name):
        pool = {"projector": name, "pool": (2, 3, 3)}
        configs = [make_config(**pool, pool_first=first) for first in (True, False)]
        return [run(make(c), c, features, positions, grid) for c in configs]

    torch.testing.assert_close(*both("3davg+linear"))
    before, behind = both("3davg+mlp2x_gelu")
    assert (before - behind).abs().max() > 0.01


def test_a_level_pools_like_the_cells_it_stands_for(make_config):
    """mlp2x_gelu with pool_level 2 is 3davg+mlp2x_gelu with half the sides (VideoGPT+)."""
    positions, features = dense(3, 6, 4), torch.randn(72, 64, dtype=torch.float64)
    level = make_config(projector="mlp2x_gelu", pool_level=2, pool_first=False)
    cells = make_config(projector="3davg+mlp2x_gelu", pool=(3, 3, 2), pool_first=False)
    got = run(make(level), level, features, positions, (6, 4))
    torch.testing.assert_close(got, run(make(cells), cells, features, positions, (6, 4)))


def test_the_convolution_equals_torch_on_a_full_grid(make_config):
    config = make_config(projector="3dconv+linear")
    conv = make(config).conv
    T, H, W = 4, 3, 5
    order = torch.randperm(T * H * W, generator=torch.Generator().manual_seed(0))
    positions = dense(T, H, W)[order]
    features = torch.randn(T * H * W, 64, dtype=torch.float64)
    slots = positions * torch.tensor([21, 1, 1])
    got = conv(features, plan_of(config, slots, (H, W)).place_L4)
    grid_DTHW = torch.empty(64, T, H, W, dtype=torch.float64)
    grid_DTHW[:, positions[:, 0], positions[:, 1], positions[:, 2]] = features.T
    expected = conv.conv(grid_DTHW[None])[0][:, positions[:, 0], positions[:, 1], positions[:, 2]]
    torch.testing.assert_close(got, expected.T)


def test_absent_neighbours_of_the_convolution_are_zeros_and_visuals_keep_apart(make_config, visual):
    config = make_config(projector="3dconv+linear")
    conv = make(config).conv
    visuals = [visual(i, frames=3, rows=4, columns=4, keep=20) for i in range(2)]
    features = torch.randn(40, 64, dtype=torch.float64)
    both = arrange(
        config,
        torch.cat([v[1] for v in visuals]),
        torch.tensor([20, 20]),
        torch.tensor([[4, 4], [4, 4]]),
    )
    got = conv(features, both.place_L4)
    for i, (_, positions, _) in enumerate(visuals):
        x = torch.zeros(64, 3, 4, 4, dtype=torch.float64)
        t, h, w = positions.T
        x[:, t, h, w] = features[20 * i : 20 * i + 20].T
        torch.testing.assert_close(got[20 * i : 20 * i + 20], conv.conv(x[None])[0][:, t, h, w].T)


def test_the_attentive_pooler_is_a_cross_attention_per_time_cell(make_config, visual):
    """Against a loop over steps, with bins of 5 steps in 2 cells, which overlap."""
    config = make_config(projector="attentive+linear", pool=(2, 2, 3))
    pooler = make(config).pool
    _, positions, grid = visual(0, frames=5, rows=4, columns=4, keep=37)
    features = torch.randn(37, 64, dtype=torch.float64)
    expected = []
    for steps in ((0, 1, 2), (2, 3, 4)):
        inside = torch.isin(positions[:, 0], torch.tensor(steps))
        keys, values = pooler.kv(pooler.norm1(features[inside])).chunk(2, dim=-1)
        queries = pooler.q(pooler.queries)
        heads = [
            torch.softmax(q @ k.T / 8**0.5, -1) @ v
            for q, k, v in zip(
                queries.split(8, 1), keys.split(8, 1), values.split(8, 1), strict=True
            )
        ]
        x = pooler.queries + pooler.out(torch.cat(heads, 1))
        expected.append(x + pooler.mlp(pooler.norm2(x)))
    got = pooler(features, plan_of(config, positions, grid))
    torch.testing.assert_close(got, torch.cat(expected))


def test_the_merger_makes_a_quarter_of_the_tokens_of_whole_blocks(make_config):
    config = make_config(projector="merger")
    projector = make(config)
    positions, features = dense(2, 4, 6), torch.randn(48, 64, dtype=torch.float64)
    tokens = run(projector, config, features, positions, (4, 6))
    assert len(tokens) == 12
    merger = projector.merger
    x_THWD = merger.norm(features).view(2, 2, 2, 3, 2, 64)  # t, block row, h, block column, w
    blocks = x_THWD.permute(0, 1, 3, 2, 4, 5).reshape(12, 256)
    torch.testing.assert_close(tokens, merger.mlp(blocks))


def test_absent_neighbours_of_the_merger_are_zeros_behind_the_norm(make_config, visual):
    """Odd sides, and blocks of which selection left one to three patches."""
    config = make_config(projector="merger")
    projector = make(config)
    merger = projector.merger
    nn.init.ones_(merger.norm.bias)  # zeros before the norm would show
    _, positions, grid = visual(0, frames=3, rows=5, columns=5, keep=40)
    features = torch.randn(40, 64, dtype=torch.float64)
    normed = merger.norm(features)
    index = {tuple(p): i for i, p in enumerate(positions.tolist())}
    rows = []
    for t, h, w in itertools.product(range(3), range(3), range(3)):
        corners = [
            index.get((t, 2 * h + i, 2 * w + j)) for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))
        ]
        if any(c is not None for c in corners):
            zero = torch.zeros(64, dtype=torch.float64)
            rows.append(torch.cat([zero if c is None else normed[c] for c in corners]))
    got = run(projector, config, features, positions, grid)
    torch.testing.assert_close(got, merger.mlp(torch.stack(rows)))


def test_repeated_patches_leave_a_merged_token_as_it_is(make_config):
    config = make_config(projector="merger")
    projector = make(config)
    positions, features = dense(1, 2, 2), torch.randn(4, 64, dtype=torch.float64)
    again = torch.tensor([0, 1, 1, 1, 2, 3])
    repeated = run(projector, config, features[again], positions[again], (2, 2))
    torch.testing.assert_close(repeated, run(projector, config, features, positions, (2, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_the_position_code_starts_at_nothing_and_then_tells_time(name, make_config, visual):
    _, positions, grid = visual(0, frames=4, rows=4, columns=4, keep=40)
    features = torch.randn(40, 64, dtype=torch.float64)
    with_code = make_config(projector=name, position_embedding="sincos", pool=(4, 2, 2))
    coded = make(with_code)
    plain = make(make_config(projector=name, pool=(4, 2, 2)))
    plain.load_state_dict({k: v for k, v in coded.state_dict().items() if k != "code.weight"})
    tokens = run(coded, with_code, features, positions, grid)
    assert torch.equal(tokens, run(plain, with_code, features, positions, grid))
    tokens.square().sum().backward()
    assert coded.code.weight.grad.abs().sum() > 0
    # Once it is learned, times that are exchanged show, though no cell changes its members.
    nn.init.normal_(coded.code.weight, std=0.1)
    stretched = positions * torch.tensor([20, 1, 1])
    before = run(coded, with_code, features, positions, grid)
    assert (run(coded, with_code, features, stretched, grid) - before).abs().max() > 1e-3
    without = run(plain, with_code, features, stretched, grid)
    torch.testing.assert_close(without, tokens.detach())


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close_to_float32(name, make_config, visual):
    config = make_config(projector=name, pool=(2, 2, 2), position_embedding="sincos")
    _, positions, grid = visual(0, frames=3, rows=4, columns=5, keep=31)
    features = torch.randn(31, 64, generator=torch.Generator().manual_seed(0))
    exact = run(make(config, dtype=torch.float32), config, features, positions, grid)
    half = make(config, dtype=torch.bfloat16)
    got = run(half, config, features.bfloat16(), positions, grid)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), exact, rtol=0.05, atol=0.02)
