"""Several record sets in one stream: shares, counters, resume, and what does not fit together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from codecvit.data.labels import save_labels
from codecvit.data.mixing import Mixture, stream
from codecvit.data.pipeline import make_loader
from codecvit.data.records import RecordSet

BUDGET = 8
SIZES = (23, 23, 10)


@pytest.fixture
def sets(tmp_path, write_set):
    """Three sets whose records have the labels 100 * set + number of the record, twice."""
    made = [write_set(tmp_path / str(n), size) for n, size in enumerate(SIZES)]
    for n, record_set in enumerate(made):
        values = 100 * n + np.tile(np.arange(len(record_set))[:, None], (1, 1 + n))
        save_labels(record_set, "place", values.astype(np.int32), {"num_classes": 300})
    return made


def open_loader(sets, **options):
    options = {"batch_size": 8, "budget": BUDGET, "seed": 3, "labels": "place", **options}
    return make_loader(sets, **options)


def take(sets, steps, **options):
    with open_loader(sets, **options) as loader:
        return [next(loader) for _ in range(steps)]


def rows_of(batches):
    """Per batch the sorted (index, label, length) of its rows."""
    return [
        sorted(
            zip(b["index"].tolist(), b["labels"][:, 0].tolist(), b["length"].tolist(), strict=True)
        )
        for b in batches
    ]


@pytest.mark.parametrize(
    "weights", [(1, 1), (0.5, 0.375, 0.125), (1, 1.009), (7, 1e-3, 3.3), (5,), (1e9, 1, 2, 3)]
)
def test_counts_keep_to_their_shares_at_every_place(weights):
    mixture, shares = Mixture(weights), np.array(weights) / sum(weights)
    before = mixture.counts(0)
    assert before == [0] * len(weights)
    for place in [*range(300), 10_000, 10**6 + 7, 10**12]:
        counts = mixture.counts(place)
        assert sum(counts) == place
        assert np.abs(counts - place * shares).max() <= len(weights)
        number, own_place = mixture[place]
        assert own_place == counts[number]
        counts[number] += 1
        assert counts == mixture.counts(place + 1)


def test_over_ten_thousand_examples_the_shares_are_within_one_percent():
    weights = (0.5, 0.375, 0.125)
    ranges = [range(0, 1000), range(1000, 1400), range(1400, 2400)]
    numbers = stream(ranges, Mixture(weights), seed=1, shuffle=True)
    drawn = np.array([numbers[place] for place in range(10_000)])
    for own, weight in zip(ranges, weights, strict=True):
        mine = drawn[(drawn >= own.start) & (drawn < own.stop)]
        assert len(mine) == pytest.approx(weight * 10_000, rel=0.01)
        epochs = [mine[at : at + len(own)] for at in range(0, len(mine), len(own))]
        whole = [sorted(epoch) for epoch in epochs if len(epoch) == len(own)]
        assert all(epoch == list(own) for epoch in whole)
        assert len(epochs) < 2 or epochs[0][:100].tolist() != epochs[1][:100].tolist()


def test_sets_of_equal_size_come_in_different_orders():
    ranges = [range(0, 50), range(50, 100)]
    numbers = stream(ranges, Mixture((1, 1)), seed=1, shuffle=True)
    drawn = np.array([numbers[place] for place in range(100)])
    assert drawn[drawn < 50].tolist() != (drawn[drawn >= 50] - 50).tolist()


def test_rows_are_those_of_their_set(sets):
    for batch in take(sets, 7, weights=(1, 2, 1)):
        for row, number in enumerate(batch["index"].tolist()):
            part, index = divmod(number, 23) if number < 46 else (2, number - 46)
            sequence = sets[part][index].sequence
            assert batch["labels"][row, 0] == 100 * part + index
            assert batch["length"][row] == len(sequence) and batch["weight"][row] == 1
            np.testing.assert_array_equal(batch["patches"][row, : len(sequence)], sequence.flat())


def test_without_weights_every_record_comes_equally_often(sets):
    drawn = np.concatenate([b["index"] for b in take(sets, 14)])
    assert sorted(drawn[:56].tolist()) == list(range(56))


def test_one_set_alone_is_read_as_before(sets):
    alone = take(sets[0], 4)
    for a, b in zip(alone, take([sets[0]], 4, weights=[0.3]), strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_counters_are_exact_after_a_resume_and_count_all_processes(sets):
    weights = (0.5, 0.3, 0.2)
    whole = take(sets, 9, weights=weights)
    parts = np.searchsorted([23, 46], np.concatenate([b["index"] for b in whole]), side="right")
    options = {"weights": weights, "process_count": 2, "process_index": 1, "start_index": 40}
    with open_loader(sets, **options) as loader:
        assert loader.taken() == np.bincount(parts[:40], minlength=3).tolist()
        for _ in range(4):
            next(loader)
        assert loader.get_state() == 72
        assert loader.taken() == np.bincount(parts, minlength=3).tolist() == [36, 22, 14]


def test_another_number_of_processes_continues_with_the_same_examples(sets):
    """2 -> 4 -> 1 processes."""
    whole = rows_of(take(sets, 6, weights=(3, 2, 1)))
    resumed = []
    for count, start in ((2, 0), (4, 16), (1, 32)):
        options = {"weights": (3, 2, 1), "process_count": count, "start_index": start}
        parts = [take(sets, 2, process_index=process, **options) for process in range(count)]
        for step in range(2):
            joined = [np.concatenate([part[step][key] for part in parts]) for key in parts[0][0]]
            resumed += rows_of([dict(zip(parts[0][0], joined, strict=True))])
    assert resumed == whole


def test_an_unreadable_record_is_counted_under_its_number(sets, damage):
    damage(sets[1].path / "part-00001-of-00005.array_record", b"clip-0005")
    sets[1] = RecordSet(sets[1].path)
    with open_loader(sets, shuffle=False) as loader:
        batches = [next(loader) for _ in range(7)]
        assert loader.unreadable == {28}
    assert sum(int((batch["weight"] == 0).sum()) for batch in batches) == 1


@pytest.mark.parametrize("weights", [(1, 2), (1, 0, 1), (1, -1, 1), (1, float("nan"), 1)])
def test_wrong_weights_are_named(sets, weights):
    with pytest.raises(ValueError, match=r"weights = \["):
        open_loader(sets, weights=weights)


def test_labels_that_mean_different_classes_are_refused(sets):
    values = np.zeros((10, 1), np.int32)
    for meta, match in (
        ({"num_classes": 7}, r"\(300 classes\) and of .*2 \(7 classes\) mean different"),
        ({"num_classes": 300, "centres_sha256": "ab"}, "mean different classes"),
        ({"num_classes": 300, "classes": ["a"] * 300}, "mean different classes"),
    ):
        save_labels(sets[2], "place", values, meta)
        with pytest.raises(ValueError, match=match):
            open_loader(sets)
    open_loader(sets, labels=None).close()
    open_loader(sets, labels="parity").close()
    with pytest.raises(ValueError, match="mean different classes"):
        open_loader(sets, labels="parity+place")


def test_sets_of_different_patch_sides_and_no_set_are_refused(sets):
    path = sets[2].path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "patch": 2}))
    with pytest.raises(ValueError, match="patches of 4 and 2 pixels"):
        open_loader([*sets[:2], RecordSet(sets[2].path)])
    with pytest.raises(ValueError, match="records is empty"):
        open_loader([])


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(sets):
    inline = take(sets, 3, weights=(3, 2, 1))
    for a, b in zip(inline, take(sets, 3, weights=(3, 2, 1), worker_count=2), strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
