"""Lists and records of a labelled data set, and its held-out part."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from codecvit.trainers.probe.examples import read_probe_data, split_training


def test_examples_and_records_are_matched_by_key(data):
    found = read_probe_data(data, "codec6")
    assert (found.name, found.metric, found.num_classes, found.longest) == ("made", "top1", 3, 6)
    assert found.train.missing == ["train/001"] and found.test.missing == ["test/002"]
    assert len(found.test.views) == 2 and len(found.test.keys) == 21
    for split in (found.train, found.test):
        for number, (records, rows) in enumerate(zip(split.views, split.rows, strict=True)):
            examples = split.examples_of(number)
            assert [split.keys[e] for e in examples] == records.keys
            np.testing.assert_array_equal(rows[examples], np.arange(len(records)))


def test_the_held_out_part_is_by_class_and_the_same_for_every_input(data):
    keys = {}
    for name in ("codec6", "frames2"):
        found = read_probe_data(data, name)
        fit, choose = split_training(found, 0.25, 0)
        assert sorted([*fit, *choose]) == list(range(47))
        keys[name] = {found.train.views[0].keys[row] for row in choose}
        labels = found.train.targets_NC.argmax(axis=1)[found.train.examples_of(0)[choose]]
        assert set(np.bincount(labels)) <= {3, 4}  # 4 of the 16 of each class, one has no record
    assert keys["codec6"] == keys["frames2"]
    assert set(split_training(found, 0.25, 1)[1]) != set(choose)


def test_the_draw_does_not_depend_on_what_could_be_packed(data):
    found = read_probe_data(data, "codec6")
    fit, choose = split_training(found, 0.25, 0)
    rows = found.train.rows[0].copy()
    rows[np.isin(rows, [fit[0], choose[0]])] = -1
    fewer = dataclasses.replace(found, train=dataclasses.replace(found.train, rows=[rows]))
    for kept, before in zip(split_training(fewer, 0.25, 0), (fit, choose), strict=True):
        np.testing.assert_array_equal(kept, before[1:])


def test_an_example_with_several_labels_belongs_to_the_rarest(make_data, tmp_path):
    """Class 2 comes with others only, and four times: one of the four is held out in every draw."""
    found = read_probe_data(make_data(tmp_path / "d", metric="mean_average_precision"), "codec6")
    targets_NC = np.zeros((48, 3), bool)
    targets_NC[:40, 0] = targets_NC[20:44, 1] = targets_NC[[4, 12, 30, 38], 2] = True
    train = dataclasses.replace(found.train, targets_NC=targets_NC)
    for seed in range(20):
        _, choose = split_training(dataclasses.replace(found, train=train), 0.25, seed)
        chosen_NC = targets_NC[train.examples_of(0)[choose]]
        assert chosen_NC[:, 2].sum() == 1
        assert (~chosen_NC.any(axis=1)).sum() == 1  # of the four without a label


def edit(folder, name, change):
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    change(lines)
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[0].update(labels=[3]), r"'test/000' has the labels \[3\].*in 0\.\.2"),
        (lambda x: x[0].update(labels=[0, 1]), "expected one label"),
        (lambda x: x[0].update(labels=[]), "expected one label"),
        (lambda x: x[0].update(key="test/001"), "different keys"),
        (lambda x: x.pop(0), "20 records, 1 of which .* does not list: test/000"),
    ],
)
def test_lists_that_do_not_fit_are_refused(data, tmp_path, change, message):
    folder = tmp_path / "copy"
    shutil.copytree(data, folder)
    edit(folder, "test.jsonl", change)
    with pytest.raises(ValueError, match=message):
        read_probe_data(folder, "codec6")


def test_what_is_missing_is_named(data, tmp_path):
    with pytest.raises(ValueError, match=r"dataset\.json does not exist.*codecvit probe-data"):
        read_probe_data(tmp_path, "codec6")
    with pytest.raises(ValueError, match=r"codec9 is no finished record set"):
        read_probe_data(data, "codec9")
