"""k-means: what it finds, what it may not lose, and that the mesh does not matter."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from codecvit.cluster.kmeans import _plus_plus, kmeans
from codecvit.cluster.nearest import nearest_centres, unit_rows


def blobs(clusters=6, rows=40, features=16, spread=0.02, seed=0):
    """Tight bundles of directions, rows of differing lengths -> (features, bundle of each row)."""
    rng = np.random.default_rng(seed)
    directions = unit_rows(rng.normal(size=(clusters, features)))
    of_row = rng.permutation(np.repeat(np.arange(clusters), rows))
    x = directions[of_row] + spread * rng.normal(size=(len(of_row), features))
    return (x * rng.uniform(0.5, 20, (len(x), 1))).astype(np.float32), of_row


def noise(rows=700, features=12, seed=1):
    return np.random.default_rng(seed).normal(size=(rows, features)).astype(np.float32)


def same_partition(a, b):
    """Two labelings that differ by the names of the classes only."""
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a)) == len(set(b))


def mesh_of(count):
    axes = (AxisType.Auto,) * 2
    return jax.make_mesh((2, count // 2), ("replica", "fsdp"), axis_types=axes)


@pytest.mark.parametrize("seed", range(5))
def test_separated_bundles_are_recovered_whatever_the_lengths_of_the_rows(seed):
    x, of_row = blobs(seed=seed)
    found = kmeans(x, 6, seed=seed)
    assert same_partition(nearest_centres(x, found.centres_KD, 1)[:, 0], of_row)
    assert found.counts_K.tolist() == [40] * 6
    np.testing.assert_allclose(np.linalg.norm(found.centres_KD, axis=1), 1, atol=1e-6)
    assert found.centres_KD.dtype == np.float32


def test_inertia_never_rises_and_is_the_sum_of_squared_distances():
    x = noise()
    found = kmeans(x, 20, seed=0, iterations=15, init="random")
    assert len(found.inertia) == 16
    assert all(b <= a * (1 + 1e-6) for a, b in zip(found.inertia, found.inertia[1:], strict=False))
    assert found.inertia[-1] < 0.9 * found.inertia[0]
    unit = unit_rows(x).astype(np.float64)
    squared = ((unit[:, None] - found.centres_KD[None]) ** 2).sum(-1)
    np.testing.assert_allclose(found.inertia[-1], squared.min(1).sum(), rtol=1e-5)
    np.testing.assert_array_equal(found.counts_K, np.bincount(squared.argmin(1), minlength=20))


def test_it_stops_at_a_fixed_point_where_every_centre_is_the_mean_direction_of_its_rows():
    x = noise()
    found = kmeans(x, 5, seed=0, iterations=200)
    assert len(found.inertia) < 200
    nearest = nearest_centres(x, found.centres_KD, 1)[:, 0]
    means = np.stack([unit_rows(x)[nearest == c].sum(0) for c in range(5)])
    np.testing.assert_allclose(found.centres_KD, unit_rows(means), atol=1e-5)


def test_the_seed_decides():
    x = noise()
    one, again, other = (kmeans(x, 8, seed=seed, iterations=3) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.centres_KD, again.centres_KD)
    assert one.inertia == again.inertia
    assert not np.array_equal(one.centres_KD, other.centres_KD)


@pytest.mark.parametrize("chunk", [None, 7])
def test_the_mesh_and_the_chunk_do_not_matter(chunk):
    x, of_row = blobs(rows=37)  # 222 rows: neither 8 devices nor a chunk of 7 divides them
    alone, shared = kmeans(x, 6, seed=0), kmeans(x, 6, seed=0, mesh=mesh_of(8), chunk=chunk)
    np.testing.assert_allclose(shared.centres_KD, alone.centres_KD, atol=1e-5)
    np.testing.assert_allclose(shared.inertia, alone.inertia, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(shared.counts_K, alone.counts_K)
    assert same_partition(nearest_centres(x, shared.centres_KD, 1)[:, 0], of_row)


def test_one_update_of_unseparated_rows_is_the_same_on_every_mesh():
    x = noise(rows=701)
    init = x[:9].copy()
    alone = kmeans(x, 9, seed=0, iterations=1, init=init)
    shared = kmeans(x, 9, seed=0, iterations=1, init=init, mesh=mesh_of(8), chunk=16)
    np.testing.assert_allclose(shared.centres_KD, alone.centres_KD, atol=1e-5)
    np.testing.assert_allclose(shared.inertia, alone.inertia, rtol=1e-6)


@pytest.mark.parametrize("devices", [1, 8])
def test_empty_clusters_take_the_farthest_rows(devices):
    x, of_row = blobs(clusters=4)
    # Three of the four centres point away from every row: only the first one wins any.
    toward = unit_rows(x).mean(0)
    init = np.stack([toward, -toward, -toward, -toward])
    mesh = mesh_of(8) if devices == 8 else None
    found = kmeans(x, 4, seed=0, init=init, mesh=mesh)
    assert found.counts_K.min() > 0
    assert all(b <= a * (1 + 1e-6) for a, b in zip(found.inertia, found.inertia[1:], strict=False))
    one_update = kmeans(x, 4, seed=0, init=init, iterations=1, mesh=mesh)
    farthest = np.argsort(unit_rows(x) @ unit_rows(toward[None])[0], kind="stable")[:3]
    np.testing.assert_allclose(one_update.centres_KD[1:], unit_rows(x)[farthest], atol=1e-6)
    # The rows that moved no longer pull at the centre they left.
    rest = np.delete(unit_rows(x), farthest, axis=0).sum(0)
    np.testing.assert_allclose(one_update.centres_KD[0], unit_rows(rest[None])[0], atol=1e-5)


def test_repair_never_robs_a_cluster_of_its_last_row():
    # The last row is the farthest from its centre, which is the second one and has no other row.
    x = np.array([[1, 0, 0], [0.9, 0.2, 0], [0.9, -0.3, 0], [0, 0, 1]], np.float32)
    init = np.array([[1, 0, 0], [0, -1, 0.5], [-1, 0, 0]], np.float32)
    found = kmeans(x, 3, seed=0, init=init, iterations=1)
    assert found.counts_K.tolist() == [2, 1, 1]
    np.testing.assert_allclose(found.centres_KD[1], x[3], atol=1e-6)
    np.testing.assert_allclose(found.centres_KD[2], unit_rows(x)[2], atol=1e-6)


def test_it_runs_where_another_mesh_is_set():
    x = noise(rows=50)
    with jax.set_mesh(mesh_of(8)):
        within = kmeans(x, 3, seed=0)
    np.testing.assert_array_equal(within.centres_KD, kmeans(x, 3, seed=0).centres_KD)


def test_fewer_distinct_rows_than_centres_leaves_clusters_empty_and_says_so():
    x = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    found = kmeans(x, 5, seed=0)
    assert found.counts_K.sum() == 15
    assert sorted(found.counts_K.tolist()) == [0, 0, 5, 5, 5]
    assert np.isfinite(found.centres_KD).all()


def test_greedy_seeding_hits_every_bundle_where_random_rows_do_not():
    x, of_row = blobs(clusters=24, rows=10, features=32)
    unit = unit_rows(x)
    key = jax.random.key(0)
    seeds = np.asarray(_plus_plus(unit, key, k=24, trials=5))
    assert (np.abs(unit[None] - seeds[:, None]).sum(-1).min(1) == 0).all(), "seeds are rows"
    hit = of_row[np.argmax(seeds @ unit.T, axis=1)]
    assert len(set(hit.tolist())) == 24
    good, random = (
        kmeans(x, 24, seed=0, iterations=1, init=init).inertia[0]
        for init in ("k-means++", "random")
    )
    assert good < 0.1 * random


def test_seeding_on_a_sample_of_many_rows(monkeypatch):
    monkeypatch.setattr("codecvit.cluster.kmeans.SEEDING_ROWS_AT_LEAST", 60)
    monkeypatch.setattr("codecvit.cluster.kmeans.SEEDING_ROWS_PER_CENTRE", 10)
    x, of_row = blobs(clusters=3, rows=200)
    found = kmeans(x, 3, seed=0)
    assert found.counts_K.tolist() == [200] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 11}, "number of rows, which is 10"),
        ({"k": 0}, "k=0"),
        ({"iterations": 0}, "iterations=0"),
        ({"init": "best"}, "init='best'"),
        ({"init": np.zeros((2, 3), np.float32)}, r"give \(3, 4\)"),
        ({"features_ND": np.ones(10, np.float32)}, "shape"),
        ({"features_ND": np.full((10, 4), np.nan, np.float32)}, "row 0 .* not finite"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"features_ND": noise(10, 4), "k": 3, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        kmeans(**arguments)
