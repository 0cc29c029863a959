"""The loader: contents, resume, elasticity, damage."""

from __future__ import annotations

import logging
import signal
import time

import numpy as np
import pytest

from codecvit.data.examples import make_examples
from codecvit.data.labels import load_labels, save_labels
from codecvit.data.pipeline import iterate_once, make_loader
from codecvit.data.records import RecordSet

BUDGET = 8


@pytest.fixture
def record_set(tmp_path, write_set):
    """23 records with 5 labels each: record i has the labels 10*i ... 10*i + 4."""
    record_set = write_set(tmp_path / "set", 23)
    values = 10 * np.arange(23)[:, None] + np.arange(5)
    save_labels(record_set, "five", values.astype(np.int32), {"num_classes": 300})
    return record_set


def _take(record_set, steps, **options):
    options = {"batch_size": 8, "budget": BUDGET, "seed": 3, **options}
    with make_loader(record_set, **options) as loader:
        return [next(loader) for _ in range(steps)]


def _same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_batch_holds_the_records(record_set):
    (batch,) = _take(record_set, 1, labels="five", labels_drawn=2)
    types = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert types == {
        "patches": ("uint8", (8, BUDGET, 48)),
        "positions": ("int32", (8, BUDGET, 3)),
        "length": ("int32", (8,)),
        "labels": ("int32", (8, 2)),
        "weight": ("float32", (8,)),
        "index": ("int64", (8,)),
    }
    for row, index in enumerate(batch["index"]):
        sequence = record_set[index].sequence
        length = len(sequence)
        assert batch["length"][row] == length and batch["weight"][row] == 1
        np.testing.assert_array_equal(batch["patches"][row, :length], sequence.flat())
        np.testing.assert_array_equal(batch["positions"][row, :length], sequence.positions)
        assert not batch["patches"][row, length:].any()
        assert not batch["positions"][row, length:].any()
        assert len(set(batch["labels"][row])) == 2
        assert set(batch["labels"][row]) <= {10 * index + k for k in range(5)}


def test_every_epoch_holds_every_record_once_in_another_order(record_set):
    order = np.concatenate([b["index"] for b in _take(record_set, 23, batch_size=2)])
    first, second = order[:23], order[23:46]
    assert sorted(first) == sorted(second) == list(range(23))
    assert first.tolist() != second.tolist() != list(range(23))
    other = np.concatenate([b["index"] for b in _take(record_set, 11, batch_size=2, seed=4)])
    assert other.tolist() != order[:22].tolist()


def test_without_shuffle_the_order_is_that_of_the_records(record_set):
    order = np.concatenate([b["index"] for b in _take(record_set, 6, shuffle=False)])
    assert order.tolist() == (np.arange(48) % 23).tolist()


def test_only_some_records(record_set):
    """Each of them once an epoch, in the order that was named if nothing shuffles; resumable."""
    only = [20, 3, 11, 7]
    batches = _take(record_set, 3, batch_size=4, only=only)
    assert [sorted(batch["index"]) for batch in batches] == [sorted(only)] * 3
    assert len({tuple(batch["index"]) for batch in batches}) > 1
    (batch,) = _take(record_set, 1, batch_size=6, only=only, shuffle=False)
    assert batch["index"].tolist() == [20, 3, 11, 7, 20, 3]
    assert (batch["length"] == [len(record_set[i].sequence) for i in batch["index"]]).all()
    (later,) = _take(record_set, 1, batch_size=4, only=only, start_index=4)
    _same(later, batches[1])
    with pytest.raises(ValueError, match="only = 4 records of 2 sets"):
        make_loader([record_set, record_set], batch_size=4, budget=BUDGET, only=only)
    with pytest.raises(ValueError, match="only = 0 records"):
        make_loader(record_set, batch_size=4, budget=BUDGET, only=[])


def test_without_labels_they_are_minus_one(record_set):
    (batch,) = _take(record_set, 1, labels_drawn=3)
    np.testing.assert_array_equal(batch["labels"], np.full((8, 3), -1))


def test_resume_is_exact_and_its_state_is_one_integer(record_set):
    options = {"batch_size": 8, "budget": BUDGET, "labels": "five", "labels_drawn": 2, "seed": 3}
    whole = _take(record_set, 7, **options)
    with make_loader(record_set, **options) as loader:
        for _ in range(4):
            next(loader)
        state = loader.get_state()
    assert state == 32
    with make_loader(record_set, start_index=state, **options) as loader:
        for expected in whole[4:]:
            _same(next(loader), expected)
        loader.set_state(8)
        _same(next(loader), whole[1])
        assert loader.get_state() == 16


def _global_batches(record_set, count, steps, start):
    """Per step the examples of all `count` processes: {index: (labels, length)}."""
    parts = [
        _take(
            record_set,
            steps,
            labels="five",
            labels_drawn=2,
            process_index=process,
            process_count=count,
            start_index=start,
        )
        for process in range(count)
    ]
    batches = []
    for step in range(steps):
        rows = [
            (int(i), tuple(labels.tolist()), int(length))
            for part in parts
            for i, labels, length in zip(
                part[step]["index"], part[step]["labels"], part[step]["length"], strict=True
            )
        ]
        assert len(rows) == 8
        batches.append(sorted(rows))
    return batches


def test_another_number_of_processes_continues_with_the_same_examples(record_set):
    """2 -> 4 -> 1 processes: the same set of examples per global batch, with the same labels."""
    whole = _global_batches(record_set, 1, 9, 0)
    resumed = (
        _global_batches(record_set, 2, 3, 0)
        + _global_batches(record_set, 4, 3, 24)
        + _global_batches(record_set, 1, 3, 48)
    )
    assert resumed == whole


def test_labels_are_drawn_anew_in_every_epoch(record_set):
    drawn = {}
    for batch in _take(record_set, 12, labels="five", shuffle=False):
        for index, label in zip(
            batch["index"].tolist(), batch["labels"][:, 0].tolist(), strict=True
        ):
            drawn.setdefault(index, []).append(label)
    assert sum(len(set(labels)) > 1 for labels in drawn.values()) > 10


def test_every_pair_of_labels_is_as_likely_as_any_other(record_set):
    examples, rng = make_examples(record_set, BUDGET, "five", 2), np.random.default_rng(0)
    drawn = [examples.draw(7, rng)["labels"] - 70 for _ in range(2000)]
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(np.array(drawn).T), 1)
    assert not counts.diagonal().any()  # without repetition
    # 20 ordered pairs; the standard deviation of a count is 9.7
    np.testing.assert_allclose(counts[~np.eye(5, dtype=bool)], 100, atol=40)


def test_empty_columns_are_drawn_only_where_no_label_is_left(record_set):
    """A word list may be shorter than the longest: its words come up as often as others'."""
    values = load_labels(record_set, "five").values.copy()
    values[3] = [-1, 31, -1, 33, -1]
    values[4] = -1
    save_labels(record_set, "words", values, {"num_classes": 300})
    rng = np.random.default_rng(0)
    for drawn, want in ((1, {(31,), (33,)}), (2, {(31, 33)}), (3, {(-1, 31, 33)})):
        examples = make_examples(record_set, BUDGET, "words", drawn)
        found = {tuple(sorted(examples.draw(3, rng)["labels"].tolist())) for _ in range(30)}
        assert found == want
        assert examples.draw(4, rng)["labels"].tolist() == [-1] * drawn
        assert len(set(examples.draw(5, rng)["labels"].tolist())) == drawn


def test_unreadable_record_has_weight_zero_and_is_logged_once(record_set, damage, caplog):
    damage(record_set.path / "part-00001-of-00005.array_record", b"clip-0005")
    record_set = RecordSet(record_set.path)
    options = {"batch_size": 8, "budget": BUDGET, "labels": "five", "shuffle": False}
    with (
        caplog.at_level(logging.WARNING, "codecvit.data.pipeline"),
        make_loader(record_set, **options) as loader,
    ):
        batches = [next(loader) for _ in range(6)]
        assert loader.unreadable == {5}
    weights = np.concatenate([batch["weight"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(weights, index != 5)
    row = {key: value[5] for key, value in batches[0].items()}
    assert row["length"] == 1 and row["labels"].tolist() == [-1] and not row["patches"].any()
    assert [r.getMessage() for r in caplog.records if "record 5 counts" in r.getMessage()] == [
        r.getMessage() for r in caplog.records
    ]
    assert len(caplog.records) == 1 and "part-00001" in caplog.text
    once = list(iterate_once(record_set, 10, BUDGET))
    assert np.concatenate([b["weight"] for b in once]).sum() == 22


def test_iterate_once_gives_every_record_and_fills_the_last_batch(record_set):
    batches = list(iterate_once(record_set, 10, BUDGET, "five"))
    assert [batch["patches"].shape for batch in batches] == [(10, BUDGET, 48)] * 3
    index = np.concatenate([batch["index"] for batch in batches])
    assert index.tolist() == [*range(23), *[-1] * 7]
    weight = np.concatenate([batch["weight"] for batch in batches])
    assert weight.tolist() == [1] * 23 + [0] * 7
    assert (np.concatenate([batch["length"] for batch in batches]) >= 1).all()
    np.testing.assert_array_equal(batches[1]["labels"][3], 130 + np.arange(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 6}, r"budget = 6 is below the longest sequence of .*set \(7 patches\)"),
        ({"batch_size": 9, "process_count": 2}, "batch_size = 9 must be a positive multiple"),
        ({"labels": "five", "labels_drawn": 6}, r"labels_drawn = 6 must lie in 1\.\.5"),
        ({"labels": "none"}, "labels 'none'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(record_set, options, message):
    with pytest.raises(ValueError, match=message):
        make_loader(record_set, **{"batch_size": 8, "budget": BUDGET, **options})


def test_an_empty_set_is_refused(tmp_path, write_set):
    with pytest.raises(ValueError, match="is empty"):
        make_loader(write_set(tmp_path, 2, skip=(0, 1)), batch_size=1, budget=8)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(record_set):
    options = {"labels": "five", "labels_drawn": 2}
    inline = _take(record_set, 5, **options)
    for expected, got in zip(inline, _take(record_set, 5, worker_count=2, **options), strict=True):
        _same(got, expected)
    resumed = _take(record_set, 2, worker_count=2, start_index=24, **options)
    for expected, got in zip(inline[3:], resumed, strict=True):
        _same(got, expected)


@pytest.mark.slow
def test_workers_outlive_a_signal_to_all_processes_of_a_run(record_set):
    """As schedulers send it: the step at which the run saves needs batches still."""
    psutil = pytest.importorskip("psutil")
    inline = _take(record_set, 40)
    with make_loader(record_set, batch_size=8, budget=BUDGET, seed=3, worker_count=1) as loader:
        got = [next(loader)]
        for process in psutil.Process().children(recursive=True):
            process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        got += [next(loader) for _ in range(39)]
    for expected, batch in zip(inline, got, strict=True):
        _same(batch, expected)
