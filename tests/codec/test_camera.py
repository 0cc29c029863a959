from __future__ import annotations

import numpy as np
import pytest

from codecvit.codec.camera import camera_motion

GRID = 16
TEXTURED = np.full((1, GRID**2), 20, np.float32)


def _places():
    y, x = np.divmod(np.arange(GRID**2), GRID)
    return np.stack([x, y], axis=1) * 16.0 + 8


def _similarity(zoom, roll, shift):
    """Vectors source - place when the camera zooms and rolls about the centre, and shifts."""
    c, s = zoom * np.cos(roll), zoom * np.sin(roll)
    centred = _places() - 16 * GRID / 2
    return centred @ (np.array([[c, s], [-s, c]]) - np.eye(2)) + shift


@pytest.mark.parametrize(
    ("zoom", "roll", "shift"),
    [(1.0, 0.0, (0, 0)), (1.0, 0.0, (7, -4)), (1.1, 0.0, (3, 2)), (0.95, 0.08, (-5, 9))],
)
def test_similarity_is_recovered_beside_a_moving_object(zoom, roll, shift):
    rng = np.random.default_rng(0)
    truth = _similarity(zoom, roll, shift)
    vectors = np.rint(truth)  # the search gives whole pixels
    moving = rng.random(GRID**2) < 0.3
    vectors[moving] += (25, -18)
    fit = camera_motion(vectors[None].astype(np.float32), TEXTURED, GRID, "similarity")[0]
    assert np.abs(fit - truth).max() < 0.5
    median = camera_motion(vectors[None].astype(np.float32), TEXTURED, GRID, "median")[0]
    assert np.ptp(median, axis=0).tolist() == [0, 0]
    if zoom != 1:
        assert np.abs(median - truth).max() > 3


def test_pairs_are_fitted_each_on_its_own():
    both = np.stack([_similarity(1.1, 0, (0, 0)), _similarity(0.9, 0.1, (5, 5))]).astype(np.float32)
    texture = np.repeat(TEXTURED, 2, axis=0)
    fit = camera_motion(both, texture, GRID, "similarity")
    np.testing.assert_allclose(fit, both, atol=0.05)
    np.testing.assert_array_equal(fit[1:], camera_motion(both[1:], TEXTURED, GRID, "similarity"))


def test_flat_blocks_do_not_steer_the_camera():
    rng = np.random.default_rng(1)
    truth = _similarity(1.05, 0, (2, 2))
    flat = rng.random(GRID**2) < 0.6
    vectors = truth.copy()
    vectors[flat] = (-30, 30)  # the majority, but on blocks where any vector fits
    texture = np.where(flat, 0.1, 20).astype(np.float32)[None]
    fit = camera_motion(vectors[None].astype(np.float32), texture, GRID, "similarity")[0]
    assert np.abs(fit - truth).max() < 1


def test_too_little_texture_or_an_absurd_zoom_falls_back_to_the_median():
    vectors = _similarity(1.1, 0, (3, 1))[None].astype(np.float32)
    flat = np.full((1, GRID**2), 1, np.float32)
    for texture, field in ((flat, vectors), (TEXTURED, _similarity(1.9, 0, (3, 1))[None])):
        field = field.astype(np.float32)
        np.testing.assert_array_equal(
            camera_motion(field, texture, GRID, "similarity"),
            camera_motion(field, texture, GRID, "median"),
        )


def test_none_is_no_motion():
    vectors = _similarity(1.1, 0, (3, 1))[None].astype(np.float32)
    assert not camera_motion(vectors, TEXTURED, GRID, "none").any()


def test_no_pairs():
    empty = np.zeros((0, GRID**2, 2), np.float32)
    for model in ("similarity", "median", "none"):
        assert (
            camera_motion(empty, np.zeros((0, GRID**2), np.float32), GRID, model).shape
            == empty.shape
        )
