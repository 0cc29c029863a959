"""The nearest centres against brute force."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from codecvit.cluster.nearest import nearest_centres, unit_rows


@pytest.mark.parametrize("chunk", [None, 1, 13, 500])
def test_it_equals_brute_force_in_float64(chunk):
    rng = np.random.default_rng(0)
    x, centres = rng.normal(size=(101, 24)) * 7, rng.normal(size=(50, 24)) * 0.1
    cosine = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (
        centres / np.linalg.norm(centres, axis=1, keepdims=True)
    ).T
    found = nearest_centres(x, centres, 10, chunk)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, np.argsort(-cosine, axis=1)[:, :10])


@pytest.mark.parametrize("chunk", [None, 3])
def test_the_mesh_does_not_matter(chunk):
    rng = np.random.default_rng(2)
    x, centres = rng.normal(size=(101, 24)), rng.normal(size=(50, 24))
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    alone, shared = (nearest_centres(x, centres, 4, chunk, on) for on in (None, mesh))
    np.testing.assert_array_equal(shared, alone)
    assert nearest_centres(x[:3], centres, 4, mesh=mesh).tolist() == alone[:3].tolist()


def test_all_centres_may_be_asked_for_and_each_comes_once():
    rng = np.random.default_rng(1)
    found = nearest_centres(rng.normal(size=(9, 5)), rng.normal(size=(7, 5)), 7)
    np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(7), (9, 1)))


def test_of_equally_near_centres_the_lower_index_comes_first():
    centres = np.array([[0, 1], [1, 0], [0, 2], [2, 0], [0, 3]], np.float32)
    found = nearest_centres(np.array([[0, 5], [1, 0]], np.float32), centres, 5)
    np.testing.assert_array_equal(found, [[0, 2, 4, 1, 3], [1, 3, 0, 2, 4]])


def test_no_rows_give_no_labels():
    assert nearest_centres(np.zeros((0, 4)), np.eye(4), 2).shape == (0, 2)


def test_a_row_of_zeros_stays_zero():
    np.testing.assert_allclose(unit_rows(np.array([[0, 0], [3, 4]])), [[0, 0], [0.6, 0.8]])


@pytest.mark.parametrize("length", [1e-40, 1e-30, 1e-18, 1e-10, 1e10, 1e18, 1e25, 1e37])
def test_rows_of_any_length_become_unit_rows(length):
    """Their squares would vanish in float32, or become infinite."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(40, 24)).astype(np.float32)
    scaled = rows.copy()
    scaled[::2] = (rows[::2].astype(np.float64) * length).astype(np.float32)
    before = scaled.copy()
    tolerance = 1e-3 if length < 1e-37 else 1e-6  # numbers as small as that have few digits
    np.testing.assert_allclose(unit_rows(scaled), unit_rows(rows), atol=tolerance)
    np.testing.assert_array_equal(scaled, before)
    if length >= 1e-37:
        centres = rng.normal(size=(9, 24))
        np.testing.assert_array_equal(
            nearest_centres(scaled, centres, 3), nearest_centres(rows, centres, 3)
        )


@pytest.mark.parametrize("n", [0, 5])
def test_n_beyond_the_centres_is_refused(n):
    with pytest.raises(ValueError, match=f"n={n}.*which is 4"):
        nearest_centres(np.eye(4), np.eye(4), n)


def test_centres_of_other_features_are_refused():
    with pytest.raises(ValueError, match="4 columns and centres 3"):
        nearest_centres(np.eye(4), np.eye(3), 1)
