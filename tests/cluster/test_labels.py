"""Agreement of labelings against scikit-learn, and the file of the centres."""

import numpy as np
import pytest

from codecvit.cluster.labels import (
    Centres,
    load_centres,
    normalised_mutual_information,
    save_centres,
)


@pytest.mark.parametrize(("classes", "clusters", "noise"), [(3, 5, 0.3), (8, 2, 0.0), (4, 40, 0.9)])
def test_agreement_equals_that_of_scikit_learn(classes, clusters, noise):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    a = rng.integers(0, classes, 200)
    b = np.where(rng.random(200) < noise, rng.integers(0, clusters, 200), a * 7 % clusters)
    expected = metrics.normalized_mutual_info_score(a, b)
    assert normalised_mutual_information(a, b) == pytest.approx(expected, abs=1e-9)
    assert normalised_mutual_information(b, a) == pytest.approx(expected, abs=1e-9)


def test_names_do_not_matter_and_rows_without_label_are_left_out():
    a = np.array([0, 0, 1, 1, 5, 5, -1, 0])
    b = np.array([9, 9, 2, 2, 0, 0, 3, -1])
    assert normalised_mutual_information(a, b) == pytest.approx(1)


@pytest.mark.parametrize(
    ("a", "b"),
    [([0, 0, 1, 1], [0, 1, 0, 1]), ([0, 0], [0, 1]), ([0, 0], [0, 0]), ([-1, 0], [0, -1])],
)
def test_labelings_that_tell_nothing_of_each_other_have_none(a, b):
    assert normalised_mutual_information(np.array(a), np.array(b)) == pytest.approx(0, abs=1e-12)


def test_centres_come_back_as_they_were_saved(tmp_path):
    kept = Centres(np.eye(3, dtype=np.float32), {"features": "descriptor", "inertia": [2.0, 1.0]})
    path = tmp_path / "labels" / "a.centres.safetensors"
    save_centres(path, kept)
    found = load_centres(path)
    np.testing.assert_array_equal(found.centres_KD, kept.centres_KD)
    assert found.meta["inertia"] == [2.0, 1.0]
    assert found.digest == kept.digest
    assert found.digest != Centres(2 * kept.centres_KD, {}).digest


def test_files_that_hold_no_centres_are_named(tmp_path):
    with pytest.raises(ValueError, match="no centres at .*nothing"):
        load_centres(tmp_path / "nothing")
    (tmp_path / "text").write_text("no tensors here")
    with pytest.raises(ValueError, match="text holds no centres"):
        load_centres(tmp_path / "text")
    kept = Centres(np.eye(3, dtype=np.float32), {})
    save_centres(tmp_path / "old", kept)
    data = (tmp_path / "old").read_bytes()
    (tmp_path / "old").write_bytes(data.replace(b'\\"version\\": 1', b'\\"version\\": 9'))
    with pytest.raises(ValueError, match="old has version 9, this program reads 1"):
        load_centres(tmp_path / "old")
