"""The head inside the optimiser step: its draw of classes and its fields."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_steps import program

from codecvit.trainers import pretrain_step
from codecvit.trainers.pretrain_config import PretrainConfig
from codecvit.trainers.pretrain_step import init_state, make_train_step
from codecvit.trainers.run_config import MeshConfig

CLASSES = 61


def rows(seed=0, count=8, length=16):
    rng = np.random.default_rng(seed)
    return {
        "patches": rng.integers(0, 256, (count, length, 588), np.uint8),
        "positions": rng.integers(0, 16, (count, length, 3)).astype(np.int32),
        "length": np.full(count, length, np.int32),
        "labels": rng.integers(0, CLASSES, (count, 2)).astype(np.int32),
        "weight": np.ones(count, np.float32),
    }


def make_config(values, sources=("video",), **head):
    source = values["sources"]["video"]
    head = {"num_classes": CLASSES, "sample_rate": 0.3, **head}
    return PretrainConfig.from_dict(
        {**values, "heads": {"main": head}, "sources": dict.fromkeys(sources, source)}
    )


def run(config, steps=1, devices=1, starts=()):
    """Metrics of each step and the last state; or of the first step as if it were each of some."""
    made = program(pretrain_step, config, devices)
    with jax.set_mesh(made.mesh):
        state = made.init(0)  # the same parameters, whatever seed draws the classes
        batches = made.put({name: rows() for name in config.sources})
        history = []
        for start in starts:
            history.append(made.step(state | {"step": jnp.int32(start)}, batches)[1])
        for _ in range(0 if starts else steps):
            state, metrics = made.step(state, batches)
            history.append(metrics)
        return jax.device_get(history), jax.device_get(state)


def test_a_sampled_step_is_the_same_on_any_mesh(config_values):
    config = make_config(config_values, chunks=2)
    one, state_one = run(config, steps=3)
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    many, state_many = run(dataclasses.replace(config, mesh=MeshConfig(**sizes)), 3, devices=8)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm/head_main"], b["grad_norm/head_main"], rtol=1e-4)
        assert a["video/overflow"] == b["video/overflow"]
    centres = [s["params"]["heads"]["main"]["centres"] for s in (state_one, state_many)]
    np.testing.assert_allclose(*centres, atol=2e-5)


def test_the_draw_follows_seed_and_step(config_values):
    """The same parameters and batch: only the drawn classes can change the loss."""
    config = make_config(config_values)
    first, again, next_step = run(config, starts=(3, 3, 4))[0]
    (other_seed,), _ = run(dataclasses.replace(config, seed=1), starts=(3,))
    assert first["loss"] == again["loss"]
    assert len({float(m["loss"]) for m in (first, next_step, other_seed)}) == 3


def test_sources_draw_apart_whatever_their_order(config_values):
    (metrics,), _ = run(make_config(config_values, sources=("a", "b")))
    (swapped,), _ = run(make_config(config_values, sources=("b", "a")))
    assert metrics["a/loss"] != metrics["b/loss"]
    assert metrics["a/loss"] == pytest.approx(float(swapped["a/loss"]), rel=1e-6)


def test_the_fields_of_a_head_reach_the_loss_of_its_sources(config_values, monkeypatch):
    seen, loss = [], pretrain_step.cluster_discrimination

    def spy(*arrays, **options):
        seen.append(options)
        return loss(*arrays, **options)

    monkeypatch.setattr(pretrain_step, "cluster_discrimination", spy)
    fields = {"margin": 0.1, "scale": 20.0, "filter_threshold": 0.6, "chunks": 2}
    config = make_config(config_values, sources=("a", "b"), **fields)
    state = jax.eval_shape(lambda: init_state(config, jax.random.key(0)))
    jax.eval_shape(make_train_step(config), state, {"a": rows(), "b": rows()})
    want = fields | {"num_classes": CLASSES, "sample_rate": 0.3}
    assert [{name: options[name] for name in want} for options in seen] == [want] * 2


def test_centres_start_small_and_different():
    """N(0, 0.01), as published: how far a step of Adam's turns a centre goes by its length."""
    config = PretrainConfig.from_dict(
        {
            "model": {"variant": "Ti/14", "depth": 1},
            "sources": {"a": {"records": "none", "batch_size": 8, "budget": 16, "head": "x"}},
            "heads": {"x": {"num_classes": 500}, "y": {"num_classes": 500}},
            "total_steps": 1,
        }
    )
    heads = jax.jit(lambda: init_state(config, jax.random.key(0))["params"]["heads"])()
    for head in heads.values():
        assert np.std(head["centres"]) == pytest.approx(0.01, rel=0.02)
    assert (heads["x"]["centres"] != heads["y"]["centres"]).all()


@pytest.mark.slow
def test_the_first_moment_of_the_centres_may_be_bfloat16(config_values):
    states, losses = [], []
    for dtype in ("float32", "bfloat16"):
        config = make_config({**config_values, "total_steps": 30}, first_moment_dtype=dtype)
        history, state = run(config, steps=30)
        losses.append([float(metrics["loss"]) for metrics in history])
        states.append(state)
    # Half of that moment and nothing else: the encoder's stay float32.
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(s["opt_state"])) for s in states]
    assert sizes[0] - sizes[1] == 2 * states[0]["params"]["heads"]["main"]["centres"].size
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(states[1]["params"])}
    assert dtypes == {np.dtype(np.float32)}
    assert losses[1][1:] != losses[0][1:]
    np.testing.assert_allclose(losses[1][:5], losses[0][:5], rtol=1e-2)
    for values in losses:
        assert values[-1] < 0.7 * values[0]


def test_a_bfloat16_encoder_meets_float32_centres(config_values):
    config = make_config(config_values)
    model = dataclasses.replace(config.model, dtype="bfloat16")
    (metrics,), state = run(dataclasses.replace(config, model=model))
    assert metrics["loss"].dtype == np.float32
    assert state["params"]["heads"]["main"]["centres"].dtype == np.float32
    np.testing.assert_allclose(metrics["loss"], run(config)[0][0]["loss"], rtol=2e-2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", 1),
        ("chunks", 0),
        ("sample_rate", 0.0),
        ("sample_rate", 1.1),
        ("clip_norm", -1.0),
        ("first_moment_dtype", "float16"),
    ],
)
def test_a_wrong_field_of_a_head_is_named(config_values, field, value):
    values = copy.deepcopy(config_values)
    values["heads"]["main"][field] = value
    message = rf"config\.heads\.main\.{field} = {value!r} is out of range"
    with pytest.raises(ValueError, match=message):
        PretrainConfig.from_dict(values)
