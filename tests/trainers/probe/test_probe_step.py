"""The heads: what one step does to each of them, and which is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from codecvit.models.classifier import AttentiveClassifier
from codecvit.trainers.probe.config import AttentiveProbeConfig
from codecvit.trainers.probe.step import init_probe, keep_best, make_probe_step, make_scores

C, D, STEPS = 5, 64, 4
HEAD = AttentiveClassifier(C, "float32")


def config(**changes):
    fields = {"data": "d", "input": "i", "encoder": "e", "lrs": (1e-2, 1e-3)} | changes
    return AttentiveProbeConfig.from_dict(fields)


def batch(seed=0, weight=(1, 1, 1, 1), several=False):
    rng = np.random.default_rng(seed)
    targets = rng.random((4, C)) < 0.5 if several else np.eye(C)[rng.integers(0, C, 4)]
    return {
        "tokens": jnp.asarray(rng.normal(size=(4, 6, D)), jnp.float32),
        "length": jnp.asarray(rng.integers(1, 7, 4), jnp.int32),
        "targets": jnp.asarray(targets, jnp.float32),
        "weight": jnp.asarray(weight, jnp.float32),
    }


def run(cfg, batches, metric="top1"):
    state = init_probe(cfg, HEAD, D, jax.random.key(0))
    step = jax.jit(make_probe_step(cfg, HEAD, STEPS, metric))
    history = []
    for rows in batches:
        state, metrics = step(state, rows)
        history.append(metrics)
    return state, history


def smoothed_loss(head, rows):
    logits = HEAD.apply({"params": head}, rows["tokens"], rows["length"])
    smooth = 0.9 * rows["targets"] + 0.1 / C
    return -(smooth * jax.nn.log_softmax(logits)).sum(axis=1).mean()


def test_every_rate_trains_as_if_alone_by_adamw():
    """Against optax's own AdamW, one head at a time; the clip is at work."""
    cfg = config(clip_norm=0.3, end_lr=1e-4)
    batches = [batch(seed) for seed in range(STEPS)]
    state, history = run(cfg, batches)
    for number, lr in enumerate(cfg.lrs):
        head = init_probe(cfg, HEAD, D, jax.random.key(0))["best"]["params"]
        adamw = optax.chain(
            optax.clip_by_global_norm(0.3),
            optax.adamw(
                lambda step, lr=lr: 1e-4 + (lr - 1e-4) * (1 - step / STEPS),
                b1=0.9,
                b2=0.999,
                weight_decay=0.0,
            ),
        )
        opt_state = adamw.init(head)
        gradient = jax.jit(jax.value_and_grad(smoothed_loss))
        for rows, metrics in zip(batches, history, strict=True):
            loss, grads = gradient(head, rows)
            np.testing.assert_allclose(metrics["loss"][number], loss, rtol=1e-5)
            assert optax.tree.norm(grads) > 0.3
            updates, opt_state = adamw.update(grads, opt_state, head)
            head = optax.apply_updates(head, updates)
        found = jax.tree.map(lambda leaf, n=number: leaf[n], state["params"]["heads"])
        # Adam divides by gradients that are nearly nothing, such as that of the key bias.
        jax.tree.map(
            lambda a, b, lr=lr: np.testing.assert_allclose(a, b, atol=lr / 10), found, head
        )
    assert float(history[0]["lr"][0]) == pytest.approx(1e-2)
    assert float(history[-1]["lr"][1]) == pytest.approx(1e-4 + 9e-4 / STEPS)


def test_several_labels_have_a_cross_entropy_each():
    rows = batch(several=True)
    _, history = run(config(), [rows], "mean_average_precision")
    np.testing.assert_allclose(history[0]["loss"], np.log(2), rtol=1e-3)  # logits near 0
    scores = make_scores(HEAD, "mean_average_precision")
    state = init_probe(config(), HEAD, D, jax.random.key(0))
    np.testing.assert_allclose(scores(state["params"]["heads"], rows), 0.5, atol=1e-2)
    softmax = make_scores(HEAD, "top1")(state["params"]["heads"], rows)
    assert softmax.shape == (2, 4, C)
    np.testing.assert_allclose(softmax.sum(axis=2), 1, rtol=1e-5)


def test_a_row_of_weight_0_changes_nothing_but_the_count():
    cfg = config()
    rows = batch(weight=(1, 1, 0, 1))
    changed = {**rows, "tokens": rows["tokens"].at[2].set(7.0)}
    (one, _), (other, _) = run(cfg, [rows]), run(cfg, [changed])
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert int(one["bad_records"]) == 1


def test_a_head_that_is_not_finite_stays_and_the_others_go_on():
    cfg = config()
    state = init_probe(cfg, HEAD, D, jax.random.key(0))
    heads = state["params"]["heads"]
    broken = heads["fc"]["kernel"].at[0].set(jnp.nan)
    state["params"]["heads"] = {**heads, "fc": {**heads["fc"], "kernel": broken}}
    after, metrics = jax.jit(make_probe_step(cfg, HEAD, STEPS, "top1"))(state, batch())
    assert after["nan_steps"].tolist() == [1, 0]
    probe, before = after["params"]["heads"]["pool"]["probe"], heads["pool"]["probe"]
    np.testing.assert_array_equal(probe[0], before[0])
    assert (probe[1] != before[1]).any()
    assert np.isfinite(metrics["loss"][1])


def test_the_best_head_is_kept():
    state = jax.jit(lambda k: init_probe(config(), HEAD, D, k))(jax.random.key(0))
    state["params"]["heads"] = jax.tree.map(
        lambda leaf: leaf + jnp.arange(2.0).reshape(-1, *[1] * (leaf.ndim - 1)),
        state["params"]["heads"],
    )

    def best(state):
        return (
            float(state["best"]["score"]),
            int(state["best"]["rate"]),
            int(state["best"]["epoch"]),
        )

    state = jax.jit(keep_best)(state, jnp.array([0.1, 0.3]), 1)
    assert best(state) == (pytest.approx(0.3), 1, 1)
    kept = state["best"]["params"]["fc"]["kernel"]
    np.testing.assert_array_equal(kept, state["params"]["heads"]["fc"]["kernel"][1])
    assert best(keep_best(state, jnp.array([0.2, 0.1]), 2)) == (pytest.approx(0.3), 1, 1)
    assert best(keep_best(state, jnp.array([0.3, 0.3]), 3)) == (pytest.approx(0.3), 0, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lrs", ()), ("lrs", (1e-8,)), ("held_out", 0.0), ("flip", 2.0), ("label_smoothing", 1.0)],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"config\.{field} = "):
        config(**{field: value})


def test_smoothing_is_of_the_softmax_alone():
    rows = batch()
    for metric, changes in (("top1", True), ("mean_average_precision", False)):
        on, off = (
            run(config(label_smoothing=value), [rows, rows], metric)[1][1]["loss"][0]
            for value in (0.3, 0.0)
        )
        assert (on != off) == changes


def test_an_input_must_be_named():
    with pytest.raises(ValueError, match=r"config\.input is empty"):
        config(input="")
