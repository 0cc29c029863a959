"""The pieces of a batch, of any loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codecvit.trainers.accumulate import mean_gradient

KEY = jax.random.key(0)


def drawn_loss(params, batches, key):
    """The share of a piece times a number that is drawn for it; what it saw as metrics."""
    draw = jax.random.uniform(key)
    share = batches["a"].get("share", 1.0)
    rows = batches["a"]["x"].sum()
    return share * draw * params, {"draw": draw, "square": draw**2, "rows": rows, "share": share}


def run(pieces, weight):
    batch = {"x": jnp.arange(8.0), "weight": jnp.asarray(weight, jnp.float32)}
    return mean_gradient(drawn_loss, jnp.float32(3), {"a": batch}, KEY, pieces)


def test_each_piece_draws_anew_and_a_single_one_as_the_step_does():
    (_, metrics), _ = run(4, np.ones(8))
    assert metrics["square"] > 1.01 * metrics["draw"] ** 2 / 4  # equal draws: the same
    (loss, metrics), gradient = run(1, np.ones(8))
    assert metrics["draw"] == jax.random.uniform(KEY)
    assert (loss, gradient) == (3 * metrics["draw"], metrics["draw"])


@pytest.mark.parametrize("pieces", [2, 4])
def test_pieces_hold_every_row_once_and_count_by_their_weights(pieces):
    """All weight lies in the rows of the last piece."""
    weight = (np.arange(8) % pieces == pieces - 1) * 0.5
    (loss, metrics), gradient = run(pieces, weight)
    assert metrics["rows"] == 28 and metrics["share"] == 1
    draw = jax.random.uniform(jax.random.fold_in(KEY, pieces - 1))
    np.testing.assert_allclose([loss, gradient], [3 * draw, draw], rtol=1e-6)


def test_a_batch_without_weight_has_no_gradient():
    (loss, _), gradient = run(2, np.zeros(8))
    assert loss == 0 and gradient == 0
