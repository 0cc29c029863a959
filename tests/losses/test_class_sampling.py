"""The draw of classes, and the loss over it against a dense float64 reference."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from dense_head import (
    CLASSES,
    ROWS,
    D,
    assert_equal_to_reference,
    on_mesh,
    problem,
    reference,
    step,
    value_and_grads,
)

from codecvit.losses import cluster_discrimination
from codecvit.losses.class_sampling import draw_classes, num_blocks

KEY = jax.random.key(7)
MANY = 8192  # rows in the tests of many classes; the last 100 are padding
BLOCK = MANY // num_blocks(MANY)


def draw(labels, *, key=KEY, rate=0.1, num_classes=MANY - 100, rows=MANY, first=0, block=BLOCK):
    drawn, overflow = draw_classes(
        key,
        np.asarray(labels),
        sample_rate=rate,
        num_classes=num_classes,
        block_rows=block,
        rows=rows,
        first_row=first,
    )
    return np.asarray(drawn), int(overflow)


def draw_small(labels, rate, key=KEY, num_classes=CLASSES):
    """The classes of `problem`'s size that a loss of this rate and key runs over."""
    drawn, overflow = draw(
        labels, key=key, rate=rate, num_classes=num_classes, rows=ROWS, block=ROWS // 8
    )
    return drawn[drawn < num_classes].tolist(), overflow


def test_blocks_depend_on_the_rows_alone():
    assert [num_blocks(rows) for rows in (61, 64, 4096, 8192)] == [1, 8, 8, 16]
    assert num_blocks(400_000 + 1408) == 512  # 98 x 4096 rows of 400,000 classes
    assert num_blocks(2_002_944) == num_blocks(2**21) == 1024


def test_a_draw_has_the_positives_and_fills_every_block():
    labels = np.random.default_rng(0).integers(-1, MANY - 100, (64, 3))
    drawn, overflow = draw(labels)
    slots = int(np.ceil(0.1 * BLOCK))
    assert len(drawn) == len(set(drawn)) == MANY // BLOCK * slots
    assert (np.bincount(drawn // BLOCK) == slots).all()
    assert set(labels[labels >= 0]) <= set(drawn)
    assert drawn.max() < MANY - 100 and overflow == 0


def test_labels_that_are_none_are_not_drawn_for():
    """-1 must not mean the last row, nor a label past the classes the padding."""
    without = draw(np.full((1, 4), -1))[0]
    np.testing.assert_array_equal(draw([[-1, -5, MANY - 50, MANY + 3]])[0], without)


def test_padding_is_drawn_only_where_no_class_is_left():
    drawn, _ = draw([[0]], rate=0.5, num_classes=12, rows=64, block=8)
    assert [sorted(drawn[:4] // 8), sorted(drawn[4:8])] == [[0] * 4, [8, 9, 10, 11]]
    assert (drawn[8:] >= 12).all()


def test_every_negative_is_as_likely_as_any_other_of_its_block():
    labels, keys = [[3, 17]], jax.random.split(KEY, 2000)
    drawn = jax.vmap(
        lambda key: draw_classes(
            key, np.array(labels), sample_rate=0.5, num_classes=32, block_rows=16, rows=32
        )[0]
    )(keys)
    share = np.bincount(np.asarray(drawn).ravel(), minlength=32) / len(keys)
    assert share[3] == share[17] == 1
    # 7 of the other 15; the standard deviation of a share is 0.011
    np.testing.assert_allclose(np.delete(share, [3, 17]), 7 / 15, atol=0.05)


def test_a_draw_follows_its_key_alone():
    labels = [[5, 900]]
    np.testing.assert_array_equal(draw(labels)[0], draw(labels)[0])
    other = draw(labels, key=jax.random.key(8))[0]
    common = len(set(other) & set(draw(labels)[0])) / len(other)
    assert 0.05 < common < 0.15  # two independent tenths
    blocks = draw([[-1]])[0].reshape(-1, int(np.ceil(0.1 * BLOCK))) % BLOCK
    assert len({tuple(block) for block in blocks}) == len(blocks)


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_together_draw_what_one_draws(devices):
    labels = np.random.default_rng(1).integers(0, 600, (200, 2))  # the first two blocks overflow
    whole, overflow = draw(labels)
    rows = MANY // devices
    parts = [draw(labels, rows=rows, first=i * rows) for i in range(devices)]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), whole)
    assert overflow == sum(part[1] for part in parts) > 100


def test_overflow_counts_positives_without_a_slot():
    labels = np.arange(16)[:, None].repeat(2, axis=1)  # 8 in each of two blocks of 8
    drawn, overflow = draw_small(labels, 0.4)  # 4 slots a block
    assert overflow == 8
    assert [c for c in drawn if c < 16] == [0, 1, 2, 3, 8, 9, 10, 11]
    assert draw_small(labels, 1.0)[1] == 0


@pytest.mark.parametrize(
    ("rate", "chunks", "num_labels"), [(0.2, 1, 1), (0.2, 3, 8), (0.6, 2, 3), (0.7, 4, 1)]
)
@pytest.mark.parametrize("shape", [None, (2,), (8,), (4, 2)])
def test_equals_dense_reference_on_the_drawn_classes(shape, rate, chunks, num_labels):
    e, w, y, weights = problem(num_labels)
    drawn, overflow = draw_small(np.where(weights[:, None] > 0, y, -1), rate)
    want = reference(e, w, y, weights, CLASSES, drawn=drawn)
    with on_mesh(shape):
        got = value_and_grads(e, w, y, weights, KEY, chunks=chunks, sample_rate=rate)
    assert_equal_to_reference(got, want)
    assert got[1]["overflow"] == overflow
    assert (overflow > 0) == (rate < 0.7)
    left_out = np.setdiff1d(np.arange(ROWS), [*drawn, *y.ravel()])
    assert len(left_out) and not got[3][left_out].any()


@pytest.mark.parametrize(("shape", "chunks"), [(None, 1), (None, 4), ((8,), 2)])
def test_all_classes_drawn_equal_the_full_softmax(shape, chunks):
    e, w, y, weights = problem(3)
    full = value_and_grads(e, w, y, weights)
    with on_mesh(shape):
        got = value_and_grads(e, w, y, weights, KEY, chunks=chunks, sample_rate=0.99)
        exact = value_and_grads(e, w, y, weights, KEY, chunks=chunks, sample_rate=1.0)
    assert got[1]["overflow"] == 0 and "overflow" not in exact[1]
    for a in (got, exact):
        np.testing.assert_allclose(a[0], full[0], rtol=1e-6)
        for grad, expected in zip(a[2:], full[2:], strict=True):
            np.testing.assert_allclose(grad, expected, atol=1e-5 * np.abs(expected).max())
        for name, value in full[1].items():
            np.testing.assert_allclose(a[1][name], value, rtol=1e-5, err_msg=name)


def test_the_mesh_does_not_change_the_sample():
    rng = np.random.default_rng(3)
    e = rng.normal(size=(16, D)).astype(np.float32)
    w = rng.normal(size=(MANY, D)).astype(np.float32)
    y = rng.integers(0, MANY - 100, (16, 3)).astype(np.int32)
    options = {"num_classes": MANY - 100, "sample_rate": 0.1, "key": KEY}
    want = value_and_grads(e, w, y, np.ones(16), **options)
    assert (want[3].any(axis=1)).sum() == len(draw(y)[0])
    for shape, chunks in (((2,), 1), ((8,), 3)):
        with on_mesh(shape):
            got = value_and_grads(e, w, y, np.ones(16), chunks=chunks, **options)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
        np.testing.assert_array_equal(got[3].any(axis=1), want[3].any(axis=1))
        for grad, expected in zip(got[2:], want[2:], strict=True):
            np.testing.assert_allclose(grad, expected, atol=1e-5 * np.abs(expected).max())
        for name, value in want[1].items():
            np.testing.assert_allclose(got[1][name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("shape", [None, (8,)])
def test_a_target_without_a_slot_keeps_its_logit_and_its_gradient(shape):
    """16 labels in two blocks of one slot each."""
    e, w, _, weights = problem(1, seed=4)
    y = np.arange(16, dtype=np.int32)[:, None]
    drawn, overflow = draw_small(np.where(weights[:, None] > 0, y, -1), 0.1)
    assert overflow == 13 and len(drawn) == 8  # of 15 classes: sample 3 weighs nothing
    want = reference(e, w, y, weights, CLASSES, drawn=drawn)
    with on_mesh(shape):
        got = value_and_grads(e, w, y, weights, KEY, sample_rate=0.1)
    assert_equal_to_reference(got, want)
    moved = got[3][:16].any(axis=1)
    assert moved[weights > 0].all() and got[1]["overflow"] == 13


def test_a_sample_of_weight_zero_draws_no_class():
    e, w, y, weights = problem(3)
    changed = y.copy()
    changed[3] = [50, 51, 52]
    before = value_and_grads(e, w, y, weights, KEY, sample_rate=0.3)
    after = value_and_grads(e, w, changed, weights, KEY, sample_rate=0.3)
    assert before[0] == after[0] and before[1]["overflow"] == after[1]["overflow"]
    np.testing.assert_allclose(before[3], after[3], atol=1e-9)


def test_metrics_are_those_of_the_drawn_classes():
    e, w, y, weights = problem(1)
    drawn, _ = draw_small(np.where(weights[:, None] > 0, y, -1), 0.4)
    cosine = reference(e, w, y, weights, CLASSES)[3]
    share = np.where(y[:, 0] >= 0, weights, 0)
    share = share / share.sum()
    negative = np.isin(np.arange(CLASSES), drawn) & (np.arange(CLASSES) != y)
    with on_mesh((4, 2)):
        metrics = value_and_grads(e, w, y, weights, KEY, chunks=2, sample_rate=0.4)[1]
    hardest = np.where(negative, cosine, -1).max(axis=1)
    np.testing.assert_allclose(metrics["hardest_negative"], share @ hardest, rtol=1e-5)
    filtered = (negative & (cosine > 0.75)).sum(axis=1) / len(drawn)
    assert filtered.any()
    np.testing.assert_allclose(metrics["filtered"], share @ filtered, rtol=1e-5)


def test_memory_and_traffic_are_those_of_the_sample():
    """No array of all logits, and the collectives of the full softmax."""
    e = np.zeros((16, D), np.float32)
    w = np.zeros((MANY, D), np.float32)
    y = np.zeros((16, 2), np.int32)
    with on_mesh((8,)):
        sharding = jax.NamedSharding(
            jax.sharding.get_mesh(), jax.sharding.PartitionSpec(("replica",))
        )
        e, w = jax.device_put((e, w), sharding)

        def compile_text(rate):
            options = (("num_classes", MANY), ("sample_rate", rate))
            return step.lower(e, w, y, np.ones(16, np.float32), KEY, options).compile().as_text()

        sampled, full = compile_text(0.1), compile_text(1.0)
    assert "f32[16,1024]" in full and "f32[16,1024]" not in sampled
    for text in (sampled, full):
        assert text.count(" all-gather(") == 1
        assert text.count(" reduce-scatter(") == 1
        assert " all-to-all(" not in text and " collective-permute(" not in text


def test_what_does_not_fit_is_named():
    e, w, y, weights = problem(1)
    for rate in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"sample_rate = {rate} must lie in \(0, 1\]"):
            value_and_grads(e, w, y, weights, KEY, sample_rate=rate)
    with pytest.raises(ValueError, match=r"sample_rate = 0.5 needs the key"):
        cluster_discrimination(e, w, y, num_classes=CLASSES, sample_rate=0.5)
    with on_mesh((8,)), pytest.raises(ValueError, match=r"60 centres .* 4 blocks.* 8 devices"):
        value_and_grads(e, w[:60], y, weights, KEY, sample_rate=0.5, num_classes=60)
