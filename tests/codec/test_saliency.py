from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from codecvit.codec.config import PRESETS, SelectionConfig
from codecvit.codec.motion import Motion
from codecvit.codec.saliency import _residual_limits, _residual_score, motion_score, saliency


def _errors(seed=0, pairs=4, blocks=9):
    rng = np.random.default_rng(seed)
    loud = np.geomspace(4, 60, pairs)[:, None, None]  # later frames differ more
    return np.minimum(rng.exponential(loud, (pairs, blocks, 256)), 255).astype(np.uint8)


def _percentile(values):
    return float(np.quantile(values, 0.95, method="inverted_cdf"))


def residual_score(errors, scale):
    """As `saliency` scores a clip's pairs by their residual."""
    limits, _ = _residual_limits(errors, errors[:0], scale)
    return _residual_score(errors, limits)


@pytest.mark.parametrize("scale", ["clip", "sqrt", "frame"])
def test_residual_score_is_the_mean_of_errors_cut_at_their_percentile(scale):
    errors = _errors()
    clip = _percentile(errors)
    score = residual_score(errors, scale)
    for t in range(len(errors)):
        frame = _percentile(errors[t])
        limit = max({"clip": clip, "sqrt": np.sqrt(clip * frame), "frame": frame}[scale], 2.0)
        np.testing.assert_allclose(
            score[t], np.minimum(errors[t] / limit, 1).mean(axis=1), rtol=1e-5
        )


def test_clip_scale_keeps_a_still_frame_low_and_frame_scale_lifts_it():
    errors = _errors()
    by_clip, by_frame = residual_score(errors, "clip"), residual_score(errors, "frame")
    assert by_clip[0].mean() < 0.25 * by_clip[-1].mean()
    assert by_frame[0].mean() > 0.7 * by_frame[-1].mean()
    mixed = residual_score(errors, "sqrt")[0].mean()
    assert by_clip[0].mean() < mixed < by_frame[0].mean()


def test_noise_below_two_levels_does_not_become_salient():
    errors = np.ones((2, 4, 256), np.uint8)
    np.testing.assert_allclose(residual_score(errors, "frame"), 0.5)


def test_motion_score_counts_length_and_texture():
    moved = np.zeros((2, 40, 2), np.float32)
    moved[0, :, 0] = np.linspace(0, 39, 40)
    texture = np.full((2, 40), 8, np.float32)
    texture[0, 39] = 1
    score = motion_score(moved, texture, "frame")
    limit = np.quantile(np.arange(40), 0.95)
    np.testing.assert_allclose(score[0, :39], np.minimum(np.arange(39) / limit, 1), rtol=1e-5)
    assert score[0, 39] == pytest.approx(0.25)  # a quarter of the texture that counts whole
    assert not score[1].any()


def test_jitter_below_half_a_pixel_stays_small():
    moved = np.full((1, 10, 2), [0.1, 0], np.float32)
    score = motion_score(moved, np.full((1, 10), 9, np.float32), "frame")
    np.testing.assert_allclose(score, 0.2, rtol=1e-5)


def _motion(seed=0):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-9, 10, (4, 9, 2)).astype(np.float32)
    texture = rng.uniform(0, 20, (4, 9)).astype(np.float32)
    first = rng.integers(0, 256, (9, 256)).astype(np.uint8)
    return Motion(3, 3, vectors, _errors(seed), texture, first)


def test_score_is_the_weighted_mean_of_its_parts():
    motion = _motion()
    base = SelectionConfig(camera="none")
    residual = saliency(motion, dataclasses.replace(base, w_mv=0.0))[1:]
    moved = saliency(motion, dataclasses.replace(base, w_res=0.0, w_mv=1.0))[1:]
    np.testing.assert_array_equal(residual, residual_score(motion.error_TNB, "clip"))
    both = saliency(motion, dataclasses.replace(base, w_res=2.0, w_mv=0.5))[1:]
    np.testing.assert_allclose(both, 0.8 * residual + 0.2 * moved, rtol=1e-5)
    assert both.dtype == np.float32
    assert 0 <= both.min() <= both.max() <= 1


def test_presets_differ():
    scores = [saliency(_motion(), config) for config in PRESETS.values()]
    assert not np.allclose(scores[0], scores[1])


def test_no_pairs_no_scores():
    motion = _motion()
    empty = dataclasses.replace(
        motion,
        vectors_TN2=motion.vectors_TN2[:0],
        error_TNB=motion.error_TNB[:0],
        texture_TN=motion.texture_TN[:0],
    )
    for config in PRESETS.values():
        assert saliency(empty, config).shape == (1, 9)


@pytest.mark.parametrize("scale", ["clip", "sqrt", "frame"])
def test_first_frame_scores_by_deviation_from_the_mean_of_its_patches(scale):
    motion = _motion()
    deviation = np.abs(
        motion.first_NB.astype(int) - np.rint(motion.first_NB.mean(axis=1, keepdims=True))
    )
    own, clip = _percentile(deviation), _percentile(motion.error_TNB)
    limit = {"clip": clip, "sqrt": np.sqrt(clip * own), "frame": own}[scale]
    score = saliency(motion, SelectionConfig(scale=scale))[0]
    np.testing.assert_allclose(score, np.minimum(deviation / limit, 1).mean(axis=1), rtol=1e-5)
    flat = dataclasses.replace(motion, first_NB=np.full((9, 256), 77, np.uint8))
    assert not saliency(flat, SelectionConfig(scale=scale))[0].any()
