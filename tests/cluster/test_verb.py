"""The verb on record sets that the writer of the data part wrote."""

import numpy as np
import pytest
from record_writer import RecordWriter

from codecvit.__main__ import main as codecvit
from codecvit.cluster.features import descriptors, embeddings
from codecvit.cluster.labels import agreement, load_centres
from codecvit.cluster.nearest import nearest_centres
from codecvit.codec.descriptor import SIZES
from codecvit.data.labels import label_names, load_labels
from codecvit.data.record import Record, Storage, encode_record
from codecvit.data.records import RecordSet
from codecvit.sequence import PatchSequence

PATCH, COUNT, KINDS = 4, 24, ("left", "right", "still")


def write_set(folder, seed=0, features=8, told_by=slice(None)):
    """24 records of 3 kinds; kinds differ in the direction of the descriptor, in its columns
    `told_by`, and in colour."""
    rng = np.random.default_rng(seed)
    directions = np.zeros((len(KINDS), features))
    directions[:, told_by] = np.random.default_rng(99).normal(size=directions[:, told_by].shape)
    with RecordWriter(folder, [range(0, 10), range(10, COUNT)]) as writer:
        for number in range(COUNT):
            kind, length = number % 3, 5 + number % 4
            patches = rng.integers(0, 30, (length, PATCH, PATCH, 3))
            patches[..., kind] += 200
            place = np.arange(length)
            positions = np.stack([place // 4, place // 2 % 2, place % 2], axis=1)
            record = Record(
                key=f"clip-{number:04d}",
                mode="codec",
                view=(8, 8),
                budget=16,
                sequence=PatchSequence(patches.astype(np.uint8), positions.astype(np.int32)),
                descriptor=(directions[kind] + 0.05 * rng.normal(size=features)).astype(np.float32),
                pts=np.zeros(1, np.float32),
                gaps=np.zeros(0, np.float32),
                labels={"motion": KINDS[kind]},
            )
            entry = {"key": record.key, "length": length, "labels": record.labels}
            writer.write(number, encode_record(record, Storage("raw")), entry)
        return writer.finish({"mode": "codec", "patch": PATCH, "size": 8, "budget": 16}, [])


def damage(record_set, key):
    """Flips one bit behind the key of a record: it can't be read any more."""
    for path in record_set.path.glob("*.array_record"):
        data = bytearray(path.read_bytes())
        place = data.find(key.encode())
        if place >= 0:
            data[place + len(key)] ^= 1
            path.write_bytes(data)


def run(*arguments):
    return codecvit(["cluster", *map(str, arguments)])


@pytest.fixture
def record_set(tmp_path):
    return write_set(tmp_path / "train")


def kinds(record_set):
    return load_labels(record_set, "motion").values[:, 0]


def test_descriptors_are_clustered_and_the_records_stay_as_they_are(record_set, capsys):
    before = {path: path.read_bytes() for path in record_set.path.glob("*.*")}
    assert run(record_set.path, "--name", "round0", "--k", 3, "--n", 2) == 0
    labels = load_labels(RecordSet(record_set.path), "round0")
    assert labels.values.shape == (COUNT, 2) and labels.values.dtype == np.int32
    assert (labels.num_classes, labels.classes) == (3, None)
    assert len(set(zip(labels.values[:, 0], kinds(record_set), strict=True))) == 3
    assert labels.meta["shard_hash"] == record_set.shard_hash
    assert labels.meta["origin"] == "clusters" and labels.meta["features"] == "descriptor"
    assert {path: path.read_bytes() for path in record_set.path.glob("*.*")} == before
    assert label_names(record_set) == ["motion", "round0"]

    centres = load_centres(record_set.path / "labels" / "round0.centres.safetensors")
    rows = np.stack([record.descriptor for record in record_set])
    np.testing.assert_array_equal(labels.values, nearest_centres(rows, centres.centres_KD, 2))
    printed = capsys.readouterr().out
    assert "24 rows of 8 features, k = 3" in printed
    assert "cluster sizes: min 8, median 8, max 8" in printed
    assert "NMI with motion: 1.000 (shuffled labels: 0." in printed
    found = agreement(record_set, labels.values)["motion"]
    assert found.nmi == pytest.approx(1) and 0 < found.shuffled < 0.3


def test_the_seed_decides_and_runs_repeat(record_set):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(record_set.path, "--name", name, "--k", 6, "--n", 6, "--seed", seed) == 0
    a, b, c = (load_labels(record_set, name).values for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_several_sets_share_the_centres(tmp_path):
    sets = [write_set(tmp_path / name, seed) for seed, name in enumerate(("codec", "frames"))]
    assert run(*(s.path for s in sets), "--name", "round0", "--k", 3, "--n", 1) == 0
    one, other = (load_labels(s, "round0") for s in sets)
    np.testing.assert_array_equal(one.values, other.values)  # equal kinds in equal order
    assert one.meta["centres_sha256"] == other.meta["centres_sha256"]
    assert one.meta["shard_hash"] != other.meta["shard_hash"]
    assert one.meta["rows"] == 2 * COUNT


def test_a_test_set_gets_labels_by_the_centres_of_the_training_set(record_set, tmp_path):
    assert run(record_set.path, "--name", "round0", "--k", 3, "--n", 1) == 0
    test_set = write_set(tmp_path / "test", seed=5)
    centres = record_set.path / "labels" / "round0.centres.safetensors"
    assert run(test_set.path, "--name", "round0", "--centres", centres, "--n", 1) == 0
    train, test = load_labels(record_set, "round0"), load_labels(test_set, "round0")
    np.testing.assert_array_equal(test.values, train.values)
    assert test.meta["centres_sha256"] == train.meta["centres_sha256"]
    # They lie beside the labels there too, also where others of that name lay before.
    assert run(test_set.path, "--name", "round0", "--k", 4, "--n", 1) == 0
    assert run(test_set.path, "--name", "round0", "--centres", centres, "--n", 1) == 0
    beside = load_centres(test_set.path / "labels" / "round0.centres.safetensors")
    assert beside.digest == load_centres(centres).digest


def test_one_part_of_the_descriptors_alone(tmp_path, capsys):
    """The kinds differ in `heading` alone; the other columns are noise."""
    folder = tmp_path / "whole"
    place = sum(size for name, size in SIZES.items() if list(SIZES).index(name) < 2)  # heading
    columns = np.arange(place, place + SIZES["heading"])
    write_set(folder, features=sum(SIZES.values()), told_by=columns)
    record_set = RecordSet(folder)
    assert run(folder, "--name", "h", "--k", 3, "--n", 1, "--part", "heading") == 0
    labels = load_labels(record_set, "h")
    assert labels.meta["features"] == "descriptor/heading"
    assert len(set(zip(labels.values[:, 0], kinds(record_set), strict=True))) == 3
    centres = load_centres(folder / "labels" / "h.centres.safetensors")
    assert centres.centres_KD.shape == (3, SIZES["heading"])
    capsys.readouterr()
    given = folder / "labels" / "h.centres.safetensors"
    assert run(folder, "--name", "i", "--centres", given, "--n", 1) == 1
    assert "made from descriptor/heading features, these are descriptor" in capsys.readouterr().err


def test_descriptors_of_another_version_have_no_parts(record_set, capsys):
    assert run(record_set.path, "--name", "h", "--k", 3, "--n", 1, "--part", "shape") == 1
    assert f"8 numbers, not {sum(SIZES.values())}: pack again" in capsys.readouterr().err


def test_an_encoder_gives_the_features(record_set, tmp_path):
    import jax

    from codecvit.convert.export import export
    from codecvit.models import ViT, ViTConfig

    config = ViTConfig(width=32, depth=1, num_heads=1, mlp_dim=32, patch=PATCH)
    batch = (
        np.zeros((1, 4, PATCH * PATCH * 3), np.uint8),
        np.zeros((1, 4, 3), np.int32),
        np.array([4], np.int32),
    )
    params = ViT(config).init(jax.random.key(0), *batch)["params"]
    folder = export(params, config, tmp_path / "encoder", image_size=8)
    arguments = ("--name", "round1", "--k", 3, "--n", 1, "--encoder", folder, "--batch-size", 7)
    assert run(record_set.path, *arguments) == 0
    labels = load_labels(record_set, "round1")
    assert len(set(zip(labels.values[:, 0], kinds(record_set), strict=True))) == 3
    assert labels.meta["features"] == "encoder" and labels.meta["encoder"] == str(folder)
    # Centres of one kind of features say nothing about the other.
    centres = record_set.path / "labels" / "round1.centres.safetensors"
    assert run(record_set.path, "--name", "round2", "--centres", centres, "--n", 1) == 1


def test_embeddings_come_in_order_without_the_rows_that_fill_the_last_batch(record_set):
    def embed(batch):
        mean = batch["patches"].astype(np.float32).sum((1, 2)) / batch["length"]
        return np.stack([mean, batch["length"]], axis=1).astype(np.float32)

    damage(record_set, "clip-0004")
    found = embeddings(record_set, embed, batch_size=7)
    assert found.rows_ND.shape == (COUNT, 2)
    assert np.flatnonzero(~found.readable_N).tolist() == [4]
    assert found.rows_ND[4].tolist() == [0, 0]
    expected = [5 + number % 4 for number in range(COUNT) if number != 4]
    assert found.rows_ND[found.readable_N, 1].tolist() == expected


def test_some_records_alone_can_be_embedded(record_set):
    asked = []

    def embed(batch):
        asked.extend(batch["index"].tolist())
        return batch["length"][:, None].astype(np.float32)

    found = embeddings(record_set, embed, batch_size=2, only=[17, 3, 6])
    assert asked == [17, 3, 6, -1]
    assert found.rows_ND[:, 0].tolist() == [5 + number % 4 for number in (17, 3, 6)]


def test_records_that_cannot_be_read_get_no_label(record_set, capsys):
    damage(record_set, "clip-0004")
    assert np.flatnonzero(~descriptors(record_set).readable_N).tolist() == [4]
    assert run(record_set.path, "--name", "round0", "--k", 3, "--n", 2) == 0
    labels = load_labels(record_set, "round0").values
    assert labels[4].tolist() == [-1, -1]
    assert (np.delete(labels, 4, axis=0) >= 0).all()
    printed = capsys.readouterr().out
    assert "1 unreadable" in printed and "23 rows of 8 features" in printed
    assert "cluster sizes: min 7, median 8, max 8" in printed and "0 empty clusters" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--name", "motion", "--k", 3, "--n", 1), "holds given labels"),
        (("--name", "a", "--k", 25, "--n", 1), "number of rows, which is 24"),
        (("--name", "a", "--k", 3, "--n", 4), "--n 4: choose 1 <= n <= k, which is 3"),
        (("--name", "a/b", "--k", 3, "--n", 1), "label name 'a/b'"),
        (("--name", "a", "--centres", "nowhere", "--n", 1), "no centres at nowhere"),
        (("--name", "a", "--k", 3, "--n", 1, "--encoder", "nowhere"), "nowhere is no folder"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(record_set, capsys, arguments, message):
    assert run(record_set.path, *arguments) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in record_set.path.rglob("labels/*")) == [
        "motion.json",
        "motion.npy",
    ]


def test_labels_of_an_earlier_round_may_be_replaced(record_set):
    for k in (3, 4):
        assert run(record_set.path, "--name", "round0", "--k", k, "--n", 1) == 0
    assert load_labels(record_set, "round0").num_classes == 4


def test_sets_with_other_features_do_not_mix(record_set, tmp_path, capsys):
    other = write_set(tmp_path / "other", features=5)
    assert run(record_set.path, other.path, "--name", "a", "--k", 3, "--n", 1) == 1
    assert "features of different lengths [5, 8]" in capsys.readouterr().err
    assert run(record_set.path, "--name", "a", "--k", 3, "--n", 1) == 0
    centres = record_set.path / "labels" / "a.centres.safetensors"
    assert run(other.path, "--name", "a", "--centres", centres, "--n", 1) == 1
    assert "features have 5 columns and centres 8" in capsys.readouterr().err


def test_help_and_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--help")
    assert stopped.value.code == 0
    assert "--centres" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        run("somewhere", "--name", "a")  # neither --k nor --centres
    assert stopped.value.code == 2
    assert "--k" in capsys.readouterr().err
