"""Label files."""

from __future__ import annotations

import numpy as np
import pytest

from codecvit.data.labels import given_labels, label_names, load_labels, save_labels
from codecvit.data.records import RecordSet


def test_given_labels_become_a_label_file(tmp_path, write_set):
    record_set = write_set(tmp_path)
    labels = load_labels(record_set, "parity")
    assert labels.classes == ("even", "odd") and labels.num_classes == 2
    np.testing.assert_array_equal(labels.values[:, 0], np.arange(12) % 2)
    assert record_set.manifest["label_columns"] == ["parity"]
    assert record_set.manifest["classes"] == {"parity": ["even", "odd"]}


def test_round_trip(tmp_path, write_set):
    record_set = write_set(tmp_path)
    values = np.arange(36, dtype=np.int32).reshape(12, 3) - 1
    save_labels(record_set, "round-1", values, {"num_classes": 35, "seed": 4})
    labels = load_labels(RecordSet(tmp_path), "round-1")
    np.testing.assert_array_equal(labels.values, values)
    assert labels.values.dtype == np.int32
    assert labels.num_classes == 35 and labels.classes is None and labels.meta["seed"] == 4
    assert label_names(record_set) == ["parity", "round-1"]


def test_several_labelings_stand_side_by_side(tmp_path, write_set):
    record_set = write_set(tmp_path)
    rng = np.random.default_rng(0)
    a = rng.integers(-1, 5, (12, 2)).astype(np.int32)
    b = rng.integers(-1, 7, (12, 1)).astype(np.int32)
    save_labels(record_set, "a", a, {"num_classes": 5})
    save_labels(record_set, "b", b, {"num_classes": 7})
    both = load_labels(record_set, "a+b+parity")
    assert both.num_classes == 5 + 7 + 2 and both.values.dtype == np.int32
    np.testing.assert_array_equal(both.values[:, :2], a)
    np.testing.assert_array_equal(both.values[:, 2], np.where(b[:, 0] < 0, -1, b[:, 0] + 5))
    np.testing.assert_array_equal(both.values[:, 3], np.arange(12) % 2 + 12)
    with pytest.raises(ValueError, match="'c': no .*c.npy"):
        load_labels(record_set, "a+c")


def test_labels_of_other_records_are_refused(tmp_path, write_set):
    old = write_set(tmp_path, 12)
    save_labels(old, "k", np.zeros((12, 1), np.int32), {"num_classes": 1})
    other = write_set(tmp_path, 12, per_shard=3)
    with pytest.raises(ValueError, match=r"k.npy was made for other records .* cluster` again"):
        load_labels(other, "k")


def test_missing_labels_say_what_there_is(tmp_path, write_set):
    with pytest.raises(ValueError, match=r"'k': no .*k.npy .*labels of this set: parity"):
        load_labels(write_set(tmp_path), "k")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((11, 1), np.int32), r"int32 \[12, n\]"),
        (np.zeros((12, 1), np.int64), "got int64"),
        (np.zeros(12, np.int32), r"\[12, n\]"),
        (np.full((12, 1), 3, np.int32), r"outside -1\.\.2"),
        (np.full((12, 1), -2, np.int32), r"outside -1\.\.2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, write_set, values, message):
    with pytest.raises(ValueError, match=message):
        save_labels(write_set(tmp_path), "k", values, {"num_classes": 3})


def test_a_name_cannot_leave_the_folder(tmp_path, write_set):
    record_set = write_set(tmp_path)
    with pytest.raises(ValueError, match="label name"):
        save_labels(record_set, "../k", np.zeros((12, 1), np.int32), {"num_classes": 1})


def test_classes_are_sorted_and_gaps_are_minus_one():
    rows = [{"digit": "10", "kind": "b"}, {"digit": "9"}, {"digit": "9", "kind": "a"}]
    result = given_labels(rows)
    assert result["digit"][1] == ["9", "10"]
    np.testing.assert_array_equal(result["digit"][0][:, 0], [1, 0, 0])
    assert result["kind"][1] == ["a", "b"]
    np.testing.assert_array_equal(result["kind"][0][:, 0], [1, -1, 0])


def test_two_sets_agree_by_class_names(tmp_path, write_set):
    labels = load_labels(write_set(tmp_path), "parity")
    values = labels.in_classes(["odd", "other", "even"])
    np.testing.assert_array_equal(values[:, 0], [2, 0] * 6)
    with pytest.raises(ValueError, match=r"not among the others: \['odd'\]"):
        labels.in_classes(["even"])
