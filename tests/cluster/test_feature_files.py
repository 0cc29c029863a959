"""Features of another model: tied to records by key, from .npy or parquet."""

import numpy as np
import pytest
from record_writer import RecordWriter

from codecvit.__main__ import main as codecvit
from codecvit.cluster.feature_files import read_features
from codecvit.cluster.labels import load_centres
from codecvit.cluster.nearest import nearest_centres
from codecvit.data.labels import load_labels
from codecvit.data.record import Record, Storage, encode_record
from codecvit.data.records import RecordSet
from codecvit.sequence import PatchSequence

COUNT, KINDS = 12, 3


@pytest.fixture
def record_set(tmp_path):
    with RecordWriter(tmp_path / "set", [range(COUNT)]) as writer:
        for number in range(COUNT):
            record = Record(
                key=f"clip-{number:02d}",
                mode="codec",
                view=(4, 4),
                budget=1,
                sequence=PatchSequence(
                    np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 3), np.int32)
                ),
                descriptor=np.zeros(2, np.float32),
                pts=np.zeros(1, np.float32),
                gaps=np.zeros(0, np.float32),
            )
            entry = {"key": record.key, "length": 1, "labels": {}}
            writer.write(number, encode_record(record, Storage("raw")), entry)
        return writer.finish({"mode": "codec", "patch": 4, "size": 4, "budget": 1}, [])


def features(seed=0):
    """Kind number % 3 tells the direction."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(KINDS, 5))
    kinds = np.arange(COUNT) % KINDS
    return (directions[kinds] + 0.01 * rng.normal(size=(COUNT, 5))).astype(np.float32)


def write_npy(folder, rows, keys):
    np.save(folder / "f.npy", rows)
    (folder / "f.keys.txt").write_text("".join(f"{key}\n" for key in keys))
    return folder / "f.npy"


def write_parquet(folder, rows, keys):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"key": list(keys), "feature": [row.tolist() for row in rows]})
    parquet.write_table(table, folder / "f.parquet")
    return folder / "f.parquet"


def write_fixed_lists(folder, rows, keys):
    """As a table made from a matrix has them."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.ravel()), rows.shape[1])
    table = pyarrow.table({"key": list(keys), "feature": lists})
    parquet.write_table(table, folder / "f.parquet", row_group_size=5)
    return folder / "f.parquet"


@pytest.mark.parametrize("write", [write_npy, write_parquet, write_fixed_lists])
def test_labels_follow_the_keys_not_the_order(record_set, tmp_path, write):
    """Rows in reverse, one of them of no record."""
    rows = np.concatenate([features(), np.ones((1, 5), np.float32)])[::-1]
    file = write(tmp_path, rows, [*record_set.keys, "stranger"][::-1])
    arguments = [str(record_set.path), "--name", "theirs", "--k", "3", "--n", "1"]
    assert codecvit(["cluster", *arguments, "--features", str(file)]) == 0
    labels = load_labels(RecordSet(record_set.path), "theirs")
    found = labels.values[:, 0]
    assert len(set(zip(found, np.arange(COUNT) % KINDS, strict=True))) == KINDS
    assert labels.meta["features"] == "file" and labels.meta["file"] == str(file)


def test_a_file_by_itself_needs_neither_records_nor_keys(tmp_path, capsys):
    np.save(tmp_path / "f.npy", features())
    call = ["cluster", "--features", str(tmp_path / "f.npy"), "--name", "free", "--n", "2"]
    out = tmp_path / "deep" / "out"
    assert codecvit([*call, "--k", "3", "--out", str(out)]) == 0
    assert "12 rows, 2 label(s) each" in capsys.readouterr().out
    names = ["free.centres.safetensors", "free.json", "free.npy"]
    assert sorted(path.name for path in out.iterdir()) == names
    labels = np.load(out / "free.npy", allow_pickle=False)
    centres = load_centres(out / "free.centres.safetensors")
    np.testing.assert_array_equal(labels, nearest_centres(features(), centres.centres_KD, 2))
    assert len(set(zip(labels[:, 0], np.arange(COUNT) % KINDS, strict=True))) == KINDS
    # Its centres serve other rows of the same model.
    np.save(tmp_path / "f.npy", features()[::-1])
    given = ["--centres", str(out / "free.centres.safetensors"), "--out", str(tmp_path / "b")]
    assert codecvit([*call, *given]) == 0
    other = np.load(tmp_path / "b" / "free.npy", allow_pickle=False)
    np.testing.assert_array_equal(other, labels[::-1])


def test_labels_go_beside_the_records_or_where_out_says(record_set, tmp_path, capsys):
    file = write_npy(tmp_path, features(), record_set.keys)
    call = ["cluster", "--features", str(file), "--name", "a", "--k", "3", "--n", "1"]
    assert codecvit(call) == 1
    assert "give RECORDS, or --features FILE and --out DIR" in capsys.readouterr().err
    assert codecvit([*call, str(record_set.path), "--out", str(tmp_path)]) == 1
    assert "the labels of RECORDS lie beside the records" in capsys.readouterr().err


def test_rows_in_the_order_of_the_records_stay_in_their_file(record_set, tmp_path):
    found = read_features(write_npy(tmp_path, features(), record_set.keys), record_set)
    assert isinstance(found.rows_ND, np.memmap)
    np.testing.assert_array_equal(found.rows_ND, features())


def test_centres_of_one_kind_of_features_do_not_serve_another(record_set, tmp_path, capsys):
    file = write_npy(tmp_path, features(), record_set.keys)
    arguments = [str(record_set.path), "--name", "theirs", "--n", "1"]
    assert codecvit(["cluster", *arguments, "--k", "3", "--features", str(file)]) == 0
    centres = record_set.path / "labels" / "theirs.centres.safetensors"
    assert codecvit(["cluster", *arguments, "--centres", str(centres)]) == 1
    assert "made from file features, these are descriptor features" in capsys.readouterr().err


def test_mini_batches_by_flag(record_set, tmp_path):
    file = write_npy(tmp_path, features(), record_set.keys)
    arguments = [str(record_set.path), "--name", "small", "--n", "1", "--k", "3"]
    assert codecvit(["cluster", *arguments, "--features", str(file), "--mini-batch", "4"]) == 0
    assert load_labels(RecordSet(record_set.path), "small").meta["mini_batch"] == 4
    assert not list((record_set.path / "labels").glob("*.progress.*"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.unlink(), "there is no such file"),
        (lambda f: f.with_suffix(".keys.txt").unlink(), r"needs f\.keys\.txt beside it"),
        (lambda f: f.write_bytes(b"x"), "cannot be read"),
        (lambda f: np.save(f, np.zeros((COUNT, 5), int)), r"holds int64 \[12, 5\]"),
        (lambda f: np.save(f, features()[:5]), "has 5 rows for 12 keys"),
        (
            lambda f: f.with_suffix(".keys.txt").write_text("a\n" * COUNT),
            "its keys are not unique",
        ),
        (
            lambda f: f.with_suffix(".keys.txt").write_text(
                "".join(f"clip-{n + 2:02d}\n" for n in range(COUNT))
            ),
            "lacks 2 of the 12 records of .*: clip-00, clip-01",
        ),
    ],
)
def test_files_that_do_not_fit_are_named(record_set, tmp_path, spoil, message):
    file = write_npy(tmp_path, features(), record_set.keys)
    spoil(file)
    with pytest.raises(ValueError, match=message):
        read_features(file, record_set)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"feature": [1.0, 2.0]}, "the column feature is double"),
        ({"feature": [[1.0], None]}, "with 1 nulls"),
        ({"feature": [[1.0], [1.0, 2.0]]}, r"rows of different lengths \[1, 2\]"),
        ({"vector": [[1.0], [2.0]]}, "cannot be read"),
    ],
)
def test_parquet_columns_that_do_not_fit_are_named(record_set, tmp_path, column, message):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"key": ["a", "b"], **column}), tmp_path / "f.parquet")
    with pytest.raises(ValueError, match=message):
        read_features(tmp_path / "f.parquet", record_set)


def test_what_k_means_found_survives_until_the_labels_are_written(
    record_set, tmp_path, monkeypatch
):
    file = write_npy(tmp_path, features(), record_set.keys)
    call = ["cluster", str(record_set.path), "--name", "theirs", "--k", "3", "--n", "1"]
    call += ["--features", str(file)]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("codecvit.cluster.__main__.assign", killed)
        codecvit(call)
    progress = record_set.path / "labels" / "theirs.progress.safetensors"
    assert progress.is_file()
    assert codecvit(call) == 0
    assert not progress.exists()


def test_another_ending_is_refused(record_set, tmp_path):
    (tmp_path / "f.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"must be \.npy, \.npz or \.parquet"):
        read_features(tmp_path / "f.pt", record_set)
