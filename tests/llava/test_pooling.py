"""Pooling by position: torch's adaptive pooling, whatever the order and number of tokens."""

import numpy as np
import pytest
import torch

from codecvit.llava.model.config import LlavaConfig
from codecvit.llava.model.pooling import arrange, cell_pairs, pooled_side
from codecvit.llava.model.projectors import CellPool, cell_means
from codecvit.llava.model.token_counts import num_visual_tokens, visual_token_groups


def dense(T, H, W):
    return torch.cartesian_prod(torch.arange(T), torch.arange(H), torch.arange(W))


def one(config, positions, grid):
    return arrange(config, positions, torch.tensor([len(positions)]), torch.tensor([[*grid]]))


def pool(config, features, plan):
    return CellPool(config, features.shape[1])(features, plan)


@pytest.mark.parametrize(("n", "s"), [(14, 8), (16, 5), (7, 8), (24, 12)])
def test_dense_tokens_in_any_order_pool_as_in_torch(n, s):
    """On each axis in turn, the others being 5 -> 2 and 3 -> 3."""
    generator = torch.Generator().manual_seed(n)
    for axes in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        sizes = [(n, 5, 3)[a] for a in axes]
        cells = [(s, 2, 3)[a] for a in axes]
        x_DTHW = torch.randn(2, *sizes, generator=generator, dtype=torch.float64)
        order = torch.randperm(x_DTHW[0].numel(), generator=generator)
        index = dense(*sizes)[order]
        count = len(index)
        sources, members = cell_pairs(
            index,
            torch.tensor(sizes).expand(count, 3),
            torch.tensor(cells).expand(count, 3),
            torch.zeros(count, dtype=torch.long),
        )
        features = x_DTHW.flatten(1).T[order]
        means = torch.zeros(s * 6, 2, dtype=torch.float64).index_add(0, members, features[sources])
        means /= torch.bincount(members, minlength=s * 6)[:, None]
        expected = torch.nn.AdaptiveAvgPool3d(cells)(x_DTHW).flatten(1).T
        torch.testing.assert_close(means, expected, rtol=0, atol=2e-15)


def test_the_model_pools_dense_videos_as_torch_does(make_config):
    """Through the configuration: 24 frames of 14 x 16 patches, in slots 0..63 -> (12, 8, 5)."""
    config = make_config(projector="3davg+linear", pool=(12, 8, 5))
    generator = torch.Generator().manual_seed(0)
    x_DTHW = torch.randn(3, 24, 14, 16, generator=generator, dtype=torch.float64)
    positions = dense(24, 14, 16)
    slots = positions.clone()
    slots[:, 0] = torch.arange(24).mul(63 / 23).round().long()[positions[:, 0]]
    order = torch.randperm(len(positions), generator=generator)
    plan = one(config, slots[order], (14, 16))
    pooled = pool(config, x_DTHW.flatten(1).T[order], plan)
    expected = torch.nn.AdaptiveAvgPool3d((12, 8, 5))(x_DTHW).flatten(1).T
    torch.testing.assert_close(pooled, expected, rtol=0, atol=2e-15)
    assert plan.counts_V.tolist() == [480]


@pytest.mark.parametrize(
    ("level", "image", "video", "tokens"),
    [
        (1, 24, 16, 13312),
        (2, 12, 8, 3328),
        (3, 8, 5, 1424),
        (4, 6, 4, 832),
        (5, 5, 3, 544),
        (8, 3, 2, 208),
        (12, 2, 1, 80),
        (16, 2, 1, 80),
        (24, 1, 1, 32),
    ],
)
def test_the_table_of_pooling_levels(level, image, video, tokens, make_config):
    """Sides of 24 and 16 patches, and tokens of 16 frames of both (VideoGPT+'s fork)."""
    assert (pooled_side(24, level), pooled_side(16, level)) == (image, video)
    config = make_config(projector="linear", pool_level=level)
    both = [num_visual_tokens(config, dense(16, n, n).numpy(), (n, n)) for n in (24, 16)]
    assert sum(both) == tokens


def brute_force(config, features, positions, grid, learned):
    """Pooling written down cell by cell: rows of (value, time cell, tokens in it)."""
    times = sorted(set(positions[:, 0].tolist()))
    sizes = (len(times), *grid)
    cells = [min(s, n) for s, n in zip(config.pool, sizes, strict=True)]
    if config.pool_level:
        cells[1:] = [max(1, round(n / config.pool_level)) for n in grid]
    index = positions.tolist()
    values = {}
    for t in range(cells[0]):
        for h in range(cells[1]):
            for w in range(cells[2]):
                inside = []
                for i, (slot, row, column) in enumerate(index):
                    place = (times.index(slot), row, column)
                    bins = zip((t, h, w), place, sizes, cells, strict=True)
                    if all(k * n // s <= p < -(-(k + 1) * n // s) for k, p, n, s in bins):
                        inside.append(i)
                values[t, h, w] = features[inside].mean(0) if inside else None
    rows = []
    for (t, h, w), value in values.items():
        if value is None and config.pool_empty == "learned":
            value = learned
        elif value is None and config.pool_empty == "carry":
            earlier = [values[s, h, w] for s in reversed(range(t))]
            later = [values[s, h, w] for s in range(t + 1, cells[0])]
            value = next((v for v in earlier + later if v is not None), None)
        if value is not None:
            rows.append(value)
    return torch.stack(rows)


@pytest.mark.parametrize("empty", ["carry", "drop", "learned"])
@pytest.mark.parametrize("level", [0, 3])
def test_sparse_tokens_pool_as_written_down_cell_by_cell(empty, level, make_config, visual):
    config = make_config(
        projector="3davg+linear", pool=(3, 2, 4), pool_level=level, pool_empty=empty
    )
    generator = torch.Generator().manual_seed(0)
    visuals = [visual(i, frames=7, rows=5, columns=6, keep=keep) for i, keep in enumerate((9, 40))]
    visuals[0][1][:, 0] *= 9  # other slots, the same steps
    positions = torch.cat([v[1] for v in visuals])
    features = torch.randn(len(positions), 4, generator=generator, dtype=torch.float64)
    plan = arrange(config, positions, torch.tensor([9, 40]), torch.tensor([[5, 6]] * 2))
    pooling = CellPool(config, 4).double()
    learned = torch.full((4,), 7.0, dtype=torch.float64)
    if empty == "learned":
        pooling.empty.data = learned
    parts = [
        brute_force(config, x, v[1], v[2], learned)
        for x, v in zip(features.split([9, 40]), visuals, strict=True)
    ]
    torch.testing.assert_close(pooling(features, plan), torch.cat(parts))
    assert plan.counts_V.tolist() == [len(part) for part in parts]
    if empty == "drop":
        assert len(parts[0]) < len(parts[1])


def test_carry_of_a_still_picture_is_constant_in_time(make_config):
    """The first frame whole, then one patch per frame: every other cell keeps the first value."""
    config = make_config(projector="3davg+linear", pool=(4, 2, 2))
    first = dense(1, 4, 4)
    later = torch.tensor([[t, 0, 0] for t in (20, 40, 63)])
    plan = one(config, torch.cat([first, later]), (4, 4))
    pooled = pool(config, torch.randn(19, 3), plan).view(4, 4, 3)
    for t in range(1, 4):
        assert torch.equal(pooled[t, 1:], pooled[0, 1:])
        assert not torch.equal(pooled[t, 0], pooled[0, 0])


def test_a_place_that_no_step_fills_has_no_token(make_config):
    """Black edges that selection left out are not made up; places filled late reach back."""
    config = make_config(projector="3davg+linear", pool=(4, 2, 2))
    positions = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 3, 0], [5, 3, 3], [5, 0, 0]])
    plan = one(config, positions, (4, 6))  # columns 3..5 of the upper half never occur
    pooled = pool(config, torch.arange(5.0)[:, None], plan)
    assert pooled[:, 0].tolist() == [0.5, 2, 3, 4, 2, 3]


def test_neighbours_in_a_batch_change_nothing(make_config, visual):
    """What padding would be elsewhere: other visuals before and behind, of other sizes."""
    config = make_config(projector="3davg+linear", pool=(3, 3, 3))
    visuals = [
        visual(0, frames=5, rows=3, columns=7, keep=30),
        visual(1, rows=9, columns=9),
        visual(2, frames=8, rows=4, columns=4, keep=20),
    ]
    features = [
        torch.randn(len(v[1]), 2, generator=torch.Generator().manual_seed(9)) for v in visuals
    ]
    plan = arrange(
        config,
        torch.cat([v[1] for v in visuals]),
        torch.tensor([len(v[1]) for v in visuals]),
        torch.tensor([v[2] for v in visuals]),
    )
    together = pool(config, torch.cat(features), plan).split(plan.counts_V.tolist())
    for x, v, got in zip(features, visuals, together, strict=True):
        torch.testing.assert_close(got, pool(config, x, one(config, v[1], v[2])))


def test_the_gradient_of_a_token_is_the_sum_of_one_over_the_counts_of_its_bins(make_config, visual):
    config = make_config(projector="3davg+linear", pool=(2, 3, 3), pool_empty="drop")
    _, positions, grid = visual(0, frames=3, rows=5, columns=4, keep=25)
    plan = one(config, positions, grid)
    features = torch.randn(25, 1, dtype=torch.float64, requires_grad=True)
    pool(config, features, plan).sum().backward()
    counts = torch.bincount(plan.cell_A, minlength=plan.cells)
    expected = torch.zeros(25, dtype=torch.float64)
    expected.index_add_(0, plan.source_A, 1.0 / counts[plan.cell_A].double())
    torch.testing.assert_close(features.grad[:, 0], expected)
    assert len(plan.cell_A) > 25  # bins overlap: some tokens have several


def test_repeated_patches_count_as_often_as_they_occur(make_config):
    config = make_config(projector="3davg+linear", pool=(1, 1, 1))
    plan = one(config, torch.tensor([[0, 0, 0], [0, 0, 0], [0, 1, 1]]), (2, 2))
    assert cell_means(torch.tensor([[1.0], [1.0], [4.0]]), plan).item() == 2


def test_sums_of_half_precision_are_made_in_float32(make_config):
    """Ten thousand ones in bfloat16 would stop at 256."""
    config = make_config(projector="3davg+linear", pool=(1, 1, 1))
    plan = one(config, dense(10, 32, 32), (32, 32))
    mean = cell_means(torch.ones(10240, 1, dtype=torch.bfloat16), plan)
    assert mean.dtype == torch.bfloat16
    assert mean.item() == 1


PROJECTORS = [
    {"projector": "linear"},
    {"projector": "mlp2x_gelu", "pool_level": 2},
    {"projector": "3davg+linear", "pool": (2, 3, 3)},
    {"projector": "3davg+linear", "pool": (2, 3, 3), "pool_empty": "drop"},
    {"projector": "3dconv+linear", "pool": (2, 3, 3), "pool_empty": "learned"},
    {"projector": "attentive+linear", "pool": (2, 3, 3)},
    {"projector": "merger"},
]


@pytest.mark.parametrize(
    "fields", PROJECTORS, ids=lambda fields: "-".join(map(str, fields.values()))
)
def test_groups_of_tokens_follow_time_and_are_as_many_as_the_tokens(fields, make_config, visual):
    config = make_config(**fields)
    _, positions, grid = visual(3, frames=6, rows=5, columns=5, keep=70)
    positions = positions.numpy()
    groups = np.arange(70) * 4 // 70  # mosaics end in the middle of a frame
    got = visual_token_groups(config, positions, groups, grid)
    assert len(got) == num_visual_tokens(config, positions, grid)
    assert (np.diff(got) >= 0).all()
    assert got[0] == 0
    assert 0 < got[-1] <= 3


def test_groups_by_hand(make_config):
    """Four frames of 2 x 2, a group each; time cells of two frames belong to the earlier group."""
    positions, groups = dense(4, 2, 2).numpy(), np.arange(16) // 4
    pooled = make_config(projector="3davg+linear", pool=(2, 1, 1))
    assert visual_token_groups(pooled, positions, groups, (2, 2)).tolist() == [0, 2]
    carried = make_config(projector="3davg+linear", pool=(4, 2, 1))
    sparse = np.concatenate([positions[:4], positions[4::4]])  # then the upper left patch alone
    got = visual_token_groups(carried, sparse, np.array([0, 0, 0, 0, 1, 2, 3]), (2, 2))
    assert got.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]  # carried values stand for their own time
    merged = make_config(projector="merger")
    assert visual_token_groups(merged, positions, groups, (2, 2)).tolist() == [0, 1, 2, 3]
    # A seam within a frame: the left block has a patch of the later group only, the right one both.
    seam = np.array([[0, 0, 4], [0, 1, 0], [0, 1, 4]])
    assert visual_token_groups(merged, seam, np.array([0, 1, 1]), (2, 6)).tolist() == [1, 1]
    plain = make_config(projector="linear")
    assert visual_token_groups(plain, positions, groups, (2, 2)).tolist() == groups.tolist()


def test_groups_that_do_not_fit_are_refused(make_config):
    positions = dense(2, 2, 2).numpy()
    config = make_config(projector="merger")
    with pytest.raises(ValueError, match="8 non-decreasing"):
        visual_token_groups(config, positions, np.arange(7), (2, 2))
    with pytest.raises(ValueError, match="8 non-decreasing"):
        visual_token_groups(config, positions, np.arange(8)[::-1], (2, 2))
    with pytest.raises(ValueError, match="later t lies in an earlier group"):
        visual_token_groups(config, positions[::-1].copy(), np.arange(8) // 4, (2, 2))


def test_positions_that_do_not_fit_are_refused(make_config):
    config: LlavaConfig = make_config(projector="3davg+linear")
    lengths, grids = torch.tensor([8]), torch.tensor([[2, 2]])
    with pytest.raises(ValueError, match=r"positions\[5\] = \[1, 2, 0\].*\[2, 2\]"):
        wrong = dense(2, 2, 2)
        wrong[5] = torch.tensor([1, 2, 0])
        arrange(config, wrong, lengths, grids)
    with pytest.raises(ValueError, match=r"\[-1, 0, 0\]"):
        arrange(config, dense(2, 2, 2) - torch.tensor([1, 0, 0]), lengths, grids)
    with pytest.raises(ValueError, match=r"\[7\].*8 rows"):
        arrange(config, dense(2, 2, 2), torch.tensor([7]), grids)
    with pytest.raises(ValueError, match=r"grids must be \[1, 2\].*\[2, 2\]"):
        arrange(config, dense(2, 2, 2), lengths, grids.expand(2, 2))
