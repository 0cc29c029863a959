"""Ranks against plain numpy: pieces, padding, meshes and ties."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from codecvit.evaluators.ranks import UNRANKED, group_ranks


def mesh_of(*sizes):
    names = ("data", "fsdp")[: len(sizes)]
    return jax.make_mesh(
        sizes,
        names,
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=jax.devices()[: int(np.prod(sizes))],
    )


def data(queries=37, candidates=53, groups=20, features=16, seed=0):
    """Some groups have no candidate, some many; some rows are padding."""
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(groups, features))

    def rows(count):
        group = rng.integers(-1, groups, count)
        x = middle[group] + rng.normal(size=(count, features))
        x *= rng.uniform(0.1, 10, (count, 1))
        return x.astype(np.float32), group

    return *rows(queries), *rows(candidates)


def plain(queries, query_groups, candidates, candidate_groups):
    queries, candidates = (
        x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (queries, candidates)
    )
    ranks = []
    for cosine, group in zip(queries @ candidates.T, query_groups, strict=True):
        own = (candidate_groups == group) & (group >= 0)
        other = (candidate_groups != group) & (candidate_groups >= 0)
        ranks.append((cosine[other] >= cosine[own].max()).sum() if own.any() else UNRANKED)
    return np.array(ranks)


@pytest.mark.parametrize("shape", [None, (8,), (4, 2)])
@pytest.mark.parametrize("chunk", [1, 7, 53, 8192])
def test_they_equal_plain_ones(shape, chunk):
    arguments = data()
    expected = plain(*arguments)
    assert (expected == UNRANKED).sum() > 2 and (expected == 0).any() and (expected == 3).any()
    found = group_ranks(*arguments, chunk=chunk, mesh=shape and mesh_of(*shape))
    np.testing.assert_array_equal(found, expected)


def test_many_queries_are_taken_in_steps(monkeypatch):
    monkeypatch.setattr("codecvit.evaluators.ranks._QUERIES", 8)
    arguments = data(queries=100)
    for mesh in (None, mesh_of(8)):
        np.testing.assert_array_equal(group_ranks(*arguments, mesh=mesh), plain(*arguments))


@pytest.mark.parametrize("chunk", [1, 16, 48, 8192])
def test_a_tie_counts_against_the_query(chunk):
    """Also between pieces, and between rows that are padding and those that are not."""
    rng = np.random.default_rng(0)
    same = np.broadcast_to(rng.normal(size=33), (50, 33)).astype(np.float32)
    groups = np.arange(50)
    for mesh in (None, mesh_of(8)):
        found = group_ranks(same, groups, same, groups, chunk=chunk, mesh=mesh)
        np.testing.assert_array_equal(found, 49)


def test_rows_that_fill_up_a_piece_are_no_candidates():
    """All candidates point away, so a row of zeros would be the nearest of all."""
    queries = np.eye(3, dtype=np.float32)
    groups = np.arange(3)
    for chunk in (2, 3):
        found = group_ranks(queries, groups, -queries - 0.1, groups, chunk=chunk)
        np.testing.assert_array_equal(found, 2)


def test_own_candidates_are_not_in_each_others_way():
    queries = np.eye(3, dtype=np.float32)[:1]
    candidates = np.array([[1, 0, 0], [1, 0.1, 0], [1, 0.2, 0], [0, 1, 0]], np.float32)
    for own, rank in (([0, 1], 0), ([1, 2], 1), ([3], 3)):
        groups = np.full(4, 1)
        groups[own] = 0
        assert group_ranks(queries, np.array([0]), candidates, groups) == [rank]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, np.full((37, 16), np.nan), "row 0 of the features is not finite"),
        (2, np.zeros((53, 3)), "16 features and candidates 3"),
        (1, np.zeros(37), "query_groups_N is float64"),
        (3, np.zeros(3, int), r"candidate_groups_M is int64 \[3\].*53 rows"),
    ],
)
def test_wrong_arguments_are_named(place, value, message):
    arguments = list(data())
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        group_ranks(*arguments)
    with pytest.raises(ValueError, match="chunk = 0"):
        group_ranks(*data(), chunk=0)
