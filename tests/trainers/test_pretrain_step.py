"""One optimiser step: what it learns, what it refuses, what it does not depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_steps import program, take_steps

from codecvit.trainers import pretrain_step
from codecvit.trainers.flops import train_flops_per_token
from codecvit.trainers.pretrain_config import PretrainConfig
from codecvit.trainers.pretrain_step import init_state, padded_classes
from codecvit.trainers.run_config import MeshConfig


def test_the_loss_of_one_batch_falls(config_values, batch, run):
    config = PretrainConfig.from_dict({**config_values, "total_steps": 30})
    _, state, history = run(config, [batch()] * 30)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert history[-1]["video/target_cosine"] > history[0]["video/target_cosine"] + 0.2
    assert state["step"] == 30
    assert {leaf.dtype for leaf in jax.tree.leaves(state["params"])} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "fsdp": 4}, marks=pytest.mark.slow),
        {"data": 2, "fsdp": 2, "tensor": 2},
    ],
)
def test_the_mesh_does_not_change_the_numbers(config_values, batch, run, sizes):
    values = {**config_values, "heads": {"main": {"num_classes": 13}}, "total_steps": 3}
    config = PretrainConfig.from_dict(values)
    batches = [batch(seed) for seed in range(3)]
    _, one, history_one = run(config, batches)
    several = dataclasses.replace(config, mesh=MeshConfig(**sizes))
    _, many, history_many = run(several, batches, devices=8)
    for a, b in zip(history_one, history_many, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm/encoder"], b["grad_norm/encoder"], rtol=1e-4)
    kernel = ("params", "encoder", "blocks", "attn", "qkv", "kernel")
    np.testing.assert_allclose(dig(one, kernel), dig(many, kernel), atol=2e-5)


def dig(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def test_a_step_that_is_not_finite_changes_only_the_counters(config_values, batch, run):
    config = PretrainConfig.from_dict({**config_values, "total_steps": 3})
    broken = {**batch(), "weight": np.full(8, np.nan, np.float32)}
    before, after, history = run(config, [batch(), broken, broken])
    assert np.isnan(history[1]["loss"])
    for part in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
    assert (after["step"], after["nan_steps"], after["nan_steps_in_row"]) == (3, 2, 2)
    _, healed, _ = run(config, [broken, batch()])
    assert (healed["nan_steps"], healed["nan_steps_in_row"]) == (1, 0)
    assert np.isfinite(jax.tree.reduce(lambda s, x: s + np.abs(x).sum(), healed["params"], 0.0))


def test_rows_of_weight_zero_count_for_nothing(config_values, batch, run):
    config = PretrainConfig.from_dict({**config_values, "total_steps": 3})
    masked = batch()
    masked["weight"][3] = 0
    changed = {key: value.copy() for key, value in masked.items()}
    changed["patches"][3] = 0
    changed["labels"][3] = -1
    (_, state, (a,)), (_, _, (b,)) = (run(config, [rows]) for rows in (masked, changed))
    assert state["bad_records"] == 1
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
    assert a["grad_norm/encoder"] == pytest.approx(b["grad_norm/encoder"], rel=1e-5)


def test_the_loss_of_several_sources_is_their_weighted_sum(config_values, batch):
    source = config_values["sources"]["video"]
    values = {**config_values, "sources": {"a": source, "b": {**source, "loss_weight": 0.5}}}
    config = PretrainConfig.from_dict(values)
    batches = [{name: batch(i) for i, name in enumerate("ab")}]
    _, _, (metrics,) = take_steps(pretrain_step, config, batches)
    total = float(metrics["a/loss"]) + 0.5 * float(metrics["b/loss"])
    assert float(metrics["loss"]) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(
    ("classes", "rows"),
    [(2, 8), (8, 8), (9, 16), (4095, 4096), (4097, 8192), (2_000_000, 2_002_944)],
)
def test_centres_are_padded_to_what_any_mesh_divides(classes, rows):
    assert padded_classes(classes) == rows


def test_padding_centres_never_win(config_values, batch):
    """13 of 16 rows are classes: making the other three huge must change nothing."""
    config = PretrainConfig.from_dict({**config_values, "heads": {"main": {"num_classes": 13}}})
    made = program(pretrain_step, config)
    with jax.set_mesh(made.mesh):
        state, rows = made.init(0), made.put({"video": batch()})
        _, plain = made.step(state, rows)
        centres = state["params"]["heads"]["main"]["centres"]
        state["params"]["heads"]["main"]["centres"] = centres.at[13:].set(100.0)
        _, padded = made.step(state, rows)
    assert plain["loss"] == padded["loss"]


def test_analytic_flops_match_the_compiled_ones(config_values, batch):
    """XLA counts a scan's body once, so the blocks are unrolled; its count has elementwise work
    too."""
    values = {
        **config_values["model"],
        "width": 256,
        "num_heads": 4,
        "mlp_dim": 1024,
        "scan": False,
    }
    config = PretrainConfig.from_dict({**config_values, "model": values})
    rows = {key: jnp.asarray(value) for key, value in batch(rows=4, length=64).items()}
    rows["length"] = None  # all rows full: no masking work

    def loss(params):
        from codecvit.models.vit import ViT

        out = ViT(config.model).apply({"params": params}, rows["patches"], rows["positions"])
        return out["tokens"].astype(jnp.float32).sum()

    shapes = jax.eval_shape(lambda: init_state(config, jax.random.key(0)))
    params = shapes["params"]["encoder"]
    cost = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()
    analytic = 4 * 64 * train_flops_per_token(config.model, 64)
    assert 0.95 < cost["flops"] / analytic < 1.25
