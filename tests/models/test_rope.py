"""The rotary code against the published formulas, quirk included."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from codecvit.models.rope import apply_rope, axis_frequencies, rope_table


def random_positions(rng, L):
    return np.stack([rng.integers(0, n, L) for n in (64, 128, 32)], axis=1).astype(np.int32)


@pytest.mark.parametrize("head_dim", [32, 64, 96])
def test_equals_the_published_formulas(head_dim):
    rng = np.random.default_rng(0)
    positions = random_positions(rng, 40)
    x = rng.normal(size=(40, 3, head_dim))
    want = reference.rotate(x, reference.rope_rows(positions, head_dim))
    cos, sin = rope_table(positions[None], head_dim, 10000.0)
    assert cos.dtype == sin.dtype == np.float32 and cos.shape == (1, 40, head_dim)
    got = apply_rope(x[None].astype(np.float32), cos, sin)[0]
    np.testing.assert_allclose(got, want, atol=5e-5)  # float32 angles up to 127


def test_known_frequencies():
    """Numbers printed from the published model at head width 64."""
    t, h, w = axis_frequencies(64, 10000.0)
    assert (len(t), len(h), len(w)) == (8, 12, 12)
    np.testing.assert_allclose(t[:5], [1, 0.3162, 0.1, 0.03162, 0.01], rtol=5e-4)
    np.testing.assert_allclose(h[[0, 1, 2, 3, 11]], [1, 0.4642, 0.2154, 0.1, 2.154e-4], rtol=5e-4)
    np.testing.assert_array_equal(h, w)
    assert axis_frequencies(64, 100.0)[0][4] == pytest.approx(0.1)


def test_each_axis_turns_its_own_channels():
    """Channels 0-7 follow t, 8-19 h, 20-31 w, and 32-63 the same again."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 1, 1, 64)).astype(np.float32)

    def out(position):
        return np.asarray(apply_rope(x, *rope_table(np.array([[position]]), 64)))[0, 0, 0]

    for axis, channels in enumerate((range(0, 8), range(8, 20), range(20, 32))):
        position = [5, 5, 5]
        position[axis] = 9
        changed = np.flatnonzero(out(position) != out([5, 5, 5]))
        assert set(changed) == set(channels) | {c + 32 for c in channels}


def test_it_is_not_a_rotation():
    """Norms change, and scores depend on more than the offset: the published quirk."""
    rng = np.random.default_rng(0)
    positions = random_positions(rng, 200)
    x = rng.normal(size=(1, 200, 1, 64)).astype(np.float32)
    y = np.asarray(apply_rope(x, *rope_table(positions[None], 64)))
    ratio = np.linalg.norm(y, axis=-1) / np.linalg.norm(x, axis=-1)
    assert ratio.min() < 0.97 and ratio.max() > 1.03 and ratio.min() > 0.8 and ratio.max() < 1.2

    q, k = rng.normal(size=(2, 1, 1, 1, 64)).astype(np.float32)

    def score(t):
        at = [rope_table(np.array([[[t + d, 3, 3]]]), 64) for d in (0, 4)]
        return float((apply_rope(q, *at[0]) * apply_rope(k, *at[1])).sum())

    scores = [score(t) for t in (0, 7, 20)]
    assert np.ptp(scores) > 0.1


def test_head_width_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="head_dim = 48"):
        rope_table(np.zeros((1, 2, 3), np.int32), 48)
