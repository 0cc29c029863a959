"""Accumulation, moving average, freezing and the counters of the optimiser step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codecvit.trainers.loss_spikes import init_spikes, update_spikes
from codecvit.trainers.pretrain_config import PretrainConfig

# Adam's first steps have the size of the rate whatever the gradient; this eps lets it count.
PLAIN = {"lr": 1e-2, "schedule": "constant", "eps": 1.0, "weight_decay": 0.0}


def config_of(values, **changes):
    return PretrainConfig.from_dict({**values, **changes})


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_accumulated_pieces_give_the_step_of_the_whole_batch(config_values, batch, run, devices):
    """Even where the rows that do not count lie in one piece, and the pieces' weights differ."""
    rows = batch()
    rows["weight"][[0, 4]] = 0  # of 4 pieces, piece 0 has rows 0 and 4
    rows["labels"][[2, 5, 6]] = [[-1], [-1], [12]]  # no words; 12 is none of 12 classes
    values = {**config_values, "optim": PLAIN, "total_steps": 2, "mesh": {"data": devices}}
    found = {}
    for pieces in (1, 2, 4):
        config = config_of(values, grad_accum_steps=pieces)
        if 8 // pieces % devices == 0:
            _, found[pieces], history = run(config, [rows, batch(1)], devices)
            found[pieces]["history"] = history
    for pieces in (2, 4):
        for one, several in zip(found[1]["history"], found[pieces]["history"], strict=True):
            assert one.keys() == several.keys()
            for name in one:
                np.testing.assert_allclose(one[name], several[name], rtol=2e-5, err_msg=name)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            found[1]["params"],
            found[pieces]["params"],
        )
        assert found[pieces]["bad_records"] == 2


def test_a_batch_that_the_pieces_do_not_divide_is_refused(config_values):
    with pytest.raises(ValueError, match=r"batch_size = 8 .* multiple of grad_accum_steps = 3"):
        config_of(config_values, grad_accum_steps=3)


def test_the_moving_average_follows_the_parameters(config_values, batch, run):
    start, after, _ = run(config_of(config_values, ema={"enabled": True, "decay": 0.9}), [batch()])
    want = jax.tree.map(
        lambda old, new: 0.9 * old + 0.1 * new,
        start["params"]["encoder"],
        after["params"]["encoder"],
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after["ema"], want)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after["ema"], start["ema"])
    assert max(jax.tree.leaves(moved)) > 0


def test_a_moving_average_of_decay_zero_is_the_parameters(config_values, batch, run):
    config = config_of(config_values, ema={"enabled": True, "decay": 0.0})
    _, after, _ = run(config, [batch(), batch(1)])
    # The sum of parameter and update, computed twice, may be rounded twice.
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9)
    jax.tree.map(same, after["ema"], after["params"]["encoder"])
    broken = {**batch(), "weight": np.full(8, np.nan, np.float32)}
    _, after, _ = run(config, [batch(), broken])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after["ema"]))


def test_without_a_moving_average_the_state_has_none(config_values, batch, run):
    _, after, _ = run(config_of(config_values), [batch()])
    assert "ema" not in after


def test_frozen_blocks_stay_and_the_rest_learns(config_values, batch, run):
    optim = {"lr": 1e-2, "freeze": ["encoder/blocks", "patch_embed"]}
    before, after, (metrics,) = run(config_of(config_values, optim=optim), [batch()])
    before, after = before["params"], after["params"]
    for name, same in (("blocks", True), ("patch_embed", True), ("head", False)):
        pairs = zip(
            jax.tree.leaves(before["encoder"][name]),
            jax.tree.leaves(after["encoder"][name]),
            strict=True,
        )
        assert all(np.array_equal(a, b) == same for a, b in pairs), name
    assert not np.array_equal(before["heads"]["main"]["centres"], after["heads"]["main"]["centres"])
    assert metrics["grad_norm/encoder"] > 0


def test_a_frozen_encoder_costs_no_backward_pass(config_values, batch):
    from codecvit.trainers.pretrain_step import init_state, make_train_step

    def flops(**optim):
        config = config_of(config_values, optim=optim)
        state = jax.eval_shape(lambda k: init_state(config, k), jax.random.key(0))
        rows = {"video": batch()}
        return (
            jax.jit(make_train_step(config)).lower(state, rows).compile().cost_analysis()["flops"]
        )

    assert flops(freeze=["encoder/"]) < 0.6 * flops()


def test_classes_that_never_came_up_are_counted(config_values, batch, run):
    one, two = batch(), batch()
    one["labels"] = np.array([[0, 1]] * 8, np.int32)
    two["labels"] = np.array([[1, -1]] * 4 + [[5, 11]] * 4, np.int32)
    _, state, history = run(config_of(config_values), [one, two])
    assert history[0]["never_hit/main"] == pytest.approx(10 / 12)
    assert history[1]["never_hit/main"] == pytest.approx(8 / 12)
    assert np.flatnonzero(state["hits"]["main"]).tolist() == [0, 1, 5, 11]


def test_the_rates_are_reported_by_group(config_values, batch, run):
    optim = {"lr": 1e-3, "warmup_steps": 2, "name": "muon", "muon_lr": 0.02}
    heads = {"main": {"num_classes": 12, "lr_mult": 0.5}}
    _, _, history = run(config_of(config_values, optim=optim, heads=heads), [batch()] * 2)
    rates = {"encoder": 1e-3, "matrices": 0.02, "heads/main": 5e-4}
    for name, peak in rates.items():
        assert history[0][f"lr/{name}"] == pytest.approx(peak / 2)
        assert history[1][f"lr/{name}"] == pytest.approx(peak)


def test_each_spike_is_counted_once_and_noise_is_not():
    rng = np.random.default_rng(0)
    losses = 14 + 0.01 * rng.standard_normal(400)
    losses[250] += 1.0
    losses[300] = np.nan
    losses[50] += 0.2  # too early to tell
    losses[270] += 1.0
    state, counted = init_spikes(), []
    update = jax.jit(lambda s, x: update_spikes(s, x, 6.0))
    for loss in losses:
        state = update(state, jnp.float32(loss))
        counted.append(int(state["spikes"]))
    assert counted[249] == 0
    assert (counted[250], counted[269], counted[270], counted[-1]) == (1, 1, 2, 2)
    assert state["mean"] == pytest.approx(14, abs=0.1)
