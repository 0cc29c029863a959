"""`codecvit clusters show`: the right members at the right ends, pictures that open."""

import jax
import numpy as np
import pytest
from PIL import Image
from record_writer import RecordWriter

from codecvit.__main__ import main as codecvit
from codecvit.cluster.features import Features, embeddings
from codecvit.cluster.labels import Centres
from codecvit.cluster.show import gathering, members
from codecvit.data.labels import load_labels
from codecvit.data.record import Record, Storage, encode_record
from codecvit.data.records import RecordSet
from codecvit.sequence import PatchSequence
from codecvit.trainers.mesh import make_mesh
from codecvit.trainers.pretrain import train_on_mesh
from codecvit.trainers.pretrain_config import PretrainConfig

COUNT = 24


@pytest.fixture(scope="module")
def record_set(tmp_path_factory):
    """Three kinds by colour and descriptor, clustered."""
    folder = tmp_path_factory.mktemp("sets") / "codec"
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(3, 8))
    with RecordWriter(folder, [range(COUNT)]) as writer:
        for number in range(COUNT):
            patches = np.zeros((4, 14, 14, 3), np.uint8)
            patches[..., number % 3] = 255
            h, w = np.divmod(np.arange(4), 2)
            record = Record(
                key=f"{number:02d}",
                mode="codec",
                view=(28, 28),
                budget=4,
                sequence=PatchSequence(patches, np.stack([0 * h, h, w], 1).astype(np.int32)),
                descriptor=(directions[number % 3] + 0.1 * rng.normal(size=8)).astype(np.float32),
                pts=np.zeros(1, np.float32),
                gaps=np.zeros(0, np.float32),
            )
            entry = {"key": record.key, "length": 4, "labels": {}}
            writer.write(number, encode_record(record, Storage("raw")), entry)
        writer.finish({"mode": "codec", "patch": 14, "size": 28, "budget": 4}, [])
    assert codecvit(["cluster", str(folder), "--name", "kinds", "--k", "3", "--n", "2"]) == 0
    return RecordSet(folder)


@pytest.fixture(scope="module")
def run(record_set, tmp_path_factory):
    """A run with checkpoints 30, 60, 90."""
    config = PretrainConfig.from_dict(
        {
            "model": {"variant": "Ti/14", "width": 64, "depth": 1, "num_heads": 1, "mlp_dim": 64},
            "sources": {
                "a": {
                    "records": str(record_set.path),
                    "batch_size": 8,
                    "budget": 4,
                    "labels": "kinds",
                }
            },
            "heads": {"main": {"num_classes": 3, "margin": 0.0}},
            "total_steps": 90,
            "optim": {"name": "muon", "lr": 3e-3, "schedule": "constant"},
            "checkpoint": {"every_steps": 30, "keep": 5},
        }
    )
    workdir = tmp_path_factory.mktemp("run")
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        train_on_mesh(config, workdir, mesh)
    return workdir


def test_members_are_sorted_by_their_cosine_with_the_centre():
    angles = np.radians([0, 10, 20, 30, 90, 95])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32) * 3
    centres = Centres(np.array([[1, 0], [0, 1], [-1, 0]], np.float32), {})
    nearest = np.array([0, 0, 0, 0, 1, -1])
    found = members(Features(rows, np.ones(6, bool)), centres, nearest, clusters=5, count=2)
    assert [(m.cluster, m.size) for m in found] == [(0, 4), (1, 1)]
    assert (found[0].nearest, found[0].farthest) == ([0, 1], [3, 2])
    assert (found[1].nearest, found[1].farthest) == ([4], [])
    assert found[0].cosine == pytest.approx((1.0, np.cos(np.radians(30))), abs=1e-6)


def test_the_sheet_shows_each_cluster_in_its_colour(record_set, tmp_path, capsys):
    out = tmp_path / "deep" / "sheet.png"
    arguments = [str(record_set.path), "--labels", "kinds", "--out", str(out), "--count", "2"]
    assert codecvit(["clusters", "show", *arguments]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    sheet = np.asarray(Image.open(out).convert("RGB"))
    bands = np.array_split(sheet, 3)
    colours = []
    for band in bands:
        pure = [(band == np.eye(3, dtype=np.uint8)[c] * 255).all(-1).sum() for c in range(3)]
        assert max(pure) > 1000 and sum(pure) == max(pure)  # one colour in a row
        colours.append(int(np.argmax(pure)))
    assert sorted(colours) == [0, 1, 2]


def test_a_sheet_is_as_wide_as_its_largest_side(record_set, tmp_path):
    """8 records a cluster: all of them on the left, and no room for the other 42."""
    sheets = []
    for count in ("8", "50"):
        out = tmp_path / f"{count}.png"
        arguments = [str(record_set.path), "--labels", "kinds", "--out", str(out)]
        assert codecvit(["clusters", "show", *arguments, "--count", count]) == 0
        sheets.append(np.asarray(Image.open(out)))
    np.testing.assert_array_equal(*sheets)


def test_labels_and_centres_of_different_clusterings_do_not_mix(record_set, tmp_path, capsys):
    for name, seed in (("one", "0"), ("two", "1")):
        arguments = ["--name", name, "--k", "5", "--n", "1", "--seed", seed]
        assert codecvit(["cluster", str(record_set.path), *arguments]) == 0
    folder = record_set.path / "labels"
    centres = (folder / "two.centres.safetensors").read_bytes()
    (folder / "one.centres.safetensors").write_bytes(centres)
    arguments = [str(record_set.path), "--labels", "one", "--out", str(tmp_path / "x.png")]
    assert codecvit(["clusters", "show", *arguments]) == 1
    assert "were not made with the centres beside them" in capsys.readouterr().err


def test_the_gathering_embeds_its_sample_alone(record_set, run, monkeypatch):
    labels = load_labels(record_set, "kinds").values[:, 0]
    embedded = []

    def counted(*args, **kwargs):
        found = embeddings(*args, **kwargs)
        embedded.append(len(found.rows_ND))
        return found

    monkeypatch.setattr("codecvit.cluster.show.embeddings", counted)
    gathering(record_set, labels, run, "main", sample=6, panels=2)
    assert embedded == [6, 6]
    with pytest.raises(ValueError, match="--head main has 8 classes, the labels go up to 9"):
        gathering(record_set, np.where(labels == 2, 9, labels), run, "main", sample=6, panels=1)


def test_samples_spread_towards_their_centres(record_set, run, tmp_path):
    labels = load_labels(record_set, "kinds").values[:, 0]
    figure = gathering(record_set, labels, run, "main", sample=12, panels=3)
    assert [axes.get_title().split(":")[0] for axes in figure.axes] == [
        f"step {step}" for step in (30, 60, 90)
    ]
    samples, centres = (c.get_offsets().data for c in figure.axes[-1].collections)
    assert samples.shape == (12, 2) and centres.shape == (3, 2)
    shown = labels[np.unique(np.linspace(0, COUNT - 1, 12).astype(int))]
    for place, kind in enumerate(np.unique(shown)):
        mine, others = samples[shown == kind], samples[shown != kind]
        assert (mine @ centres[place]).mean() > (others @ centres[place]).mean()
    out = tmp_path / "gather.png"
    arguments = [str(record_set.path), "--labels", "kinds", "--out", str(out)]
    assert codecvit(["clusters", "show", *arguments, "--workdir", str(run), "--panels", "2"]) == 0
    assert Image.open(out).width > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "other"], "other"),
        (["--labels", "kinds", "--count", "0"], "--count 0 must be at least 1"),
        (["--labels", "kinds", "--workdir", "nowhere"], "nowhere holds no checkpoints/STEP"),
        (["--labels", "kinds", "--workdir", "RUN", "--head", "x"], "no head 'x'; it has main"),
        (["--labels", "kinds", "--workdir", "RUN", "--sample", "1"], "1 records of one class"),
    ],
)
def test_wrong_arguments_are_named(record_set, run, tmp_path, arguments, message, capsys):
    arguments = [str(run) if word == "RUN" else word for word in arguments]
    out = ["--out", str(tmp_path / "x.png")]
    assert codecvit(["clusters", "show", str(record_set.path), *arguments, *out]) == 1
    assert message in capsys.readouterr().err
