"""Every shipped pretraining config trains, shrunk to two steps, and its checkpoint goes on to an
export.

Those with the argument `runlocal` also train as that shrinks them, on data made by the verbs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from record_writer import RecordWriter

import codecvit
from codecvit.__main__ import main as codecvit_main
from codecvit.convert.export_verb import main as export
from codecvit.data.augment import AugmentConfig
from codecvit.data.records import Record, Storage, encode_record, save_labels
from codecvit.metrics import read_metrics
from codecvit.models.config import ViTConfig
from codecvit.sequence import PatchSequence
from codecvit.trainers.checkpoint_reading import find_checkpoint
from codecvit.trainers.mesh import make_mesh
from codecvit.trainers.pretrain import pretrain, train_on_mesh
from codecvit.trainers.pretrain_config import PretrainConfig

CONFIGS = Path(__file__).resolve().parents[2] / "src" / "configs"
# Run elsewhere: the probe in tests/trainers/probe, openvision in test_openvision.py, llava in
# tests/llava.
OTHERS = ("__init__", "common", "fields", "llava", "llava_presets", "openvision", "probe")
NAMES = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem not in OTHERS)


def get_config(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """24 records with labels of two clusterings and two given columns."""
    folder = tmp_path_factory.mktemp("records")
    rng = np.random.default_rng(0)
    with RecordWriter(folder, [range(24)]) as writer:
        for i in range(24):
            positions = np.stack([np.arange(9), np.zeros(9), np.arange(9) % 3], 1).astype(np.int32)
            sequence = PatchSequence(rng.integers(0, 256, (9, 14, 14, 3), np.uint8), positions)
            labels = {"motion": "ab"[i % 2], "digit": str(i % 3)}
            floats = np.ones(4, np.float32)
            record = Record(
                f"{i:02d}", "codec", (42, 42), 9, sequence, floats, floats, floats[1:], None, labels
            )
            entry = {"key": record.key, "length": 9, "labels": labels}
            writer.write(i, encode_record(record, Storage("raw")), entry)
        made = writer.finish({"mode": "codec", "size": 42, "patch": 14, "budget": 9}, [])
    clusters = rng.integers(0, 16, (24, 10)).astype(np.int32)
    save_labels(made, "clusters", clusters, {"num_classes": 16})
    save_labels(made, "shapes", clusters[:, :1], {"num_classes": 16})
    save_labels(made, "words", clusters, {"num_classes": 16})
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_trains_and_exports(name, records, tmp_path):
    values = get_config(name)(None).to_dict()
    PretrainConfig.from_dict(values)
    values["model"] |= {"width": 64, "depth": 2, "num_heads": 1, "mlp_dim": 96}
    for source in values["sources"].values():
        source |= {"records": str(records), "budget": 16, "loader_workers": 0}
        # These records hold patches, which are seen as they were packed.
        source |= {"image_size": 0, "augment": {"flip": source["augment"]["flip"]}}
        source["batch_size"] = 8 * values["grad_accum_steps"]
    for head in values["heads"].values():
        head["num_classes"] = 32
    for probe in values["probes"].values():
        probe |= {"train_records": str(records), "test_records": str(records)}
    values |= {"total_steps": 2, "log_steps": 1}
    values["optim"]["warmup_steps"] = 1
    metrics = pretrain(PretrainConfig.from_dict(values), tmp_path / "run")
    assert np.isfinite(metrics["train/loss"])
    for probe in values["probes"]:
        found = f"probe/{probe}/linear_top1"
        rows = read_metrics(tmp_path / "run")
        assert [row["step"] for row in rows if found in row] == [0, 2], probe
    assert find_checkpoint(tmp_path / "run").name == "2"

    encoder = codecvit.load(tmp_path / "run")
    image = PatchSequence(np.zeros((1, 14, 14, 3), np.uint8), np.zeros((1, 3), np.int32))
    assert encoder(image).pooled.shape == (64,)
    folder = tmp_path / f"export_{name}"
    assert export([str(tmp_path / "run"), "--out", str(folder)]) == 0
    again = codecvit.load(folder)
    assert again.config == encoder.config
    jax.tree.map(np.testing.assert_array_equal, again.params, encoder.params)


# Devices x samples on each x accumulated steps, and samples of the run, as published.
STAGE_1 = [
    ("B/14", 224, 8 * 128, 13e9, 1e-3, 0.1),
    ("L/14", 224, 128 * 192, 13e9, 6e-4, 0.05),
    ("H/14", 224, 128 * 192, 13e9, 6e-4, 0.05),  # not published: as L
    ("B/14", 448, 128 * 64 * 4, 1.3e9, 1e-4, 0.01),  # not published: as L; the warm-up is ours
    ("L/14", 448, 128 * 64 * 4, 1.3e9, 1e-4, 0.01),
    ("H/14", 448, 128 * 64 * 4, 1.3e9, 1e-4, 0.01),
]


def assert_published_optimiser(config, lr):
    optim = config.optim
    assert (optim.name, optim.lr, optim.schedule, optim.weight_decay) == (
        "adamw",
        lr,
        "linear",
        0.05,
    )
    assert (optim.b1, optim.b2, optim.eps, optim.layer_decay) == (0.9, 0.999, 1e-8, 1.0)
    assert optim.clip_norm == 5 / 8  # the published 5 is of a gradient 8 times as large
    for head in config.heads.values():
        assert (head.margin, head.scale, head.filter_threshold) == (0.3, 64, 0.75)
        assert (head.sample_rate, head.lr_mult, head.weight_decay) == (0.1, 1.0, 0.05)
        assert head.clip_norm == 5
    for name, source in config.sources.items():
        assert source.labels_drawn == 8
        cropped = (source.augment.crop_area, source.augment.crop_aspect, source.augment.flip)
        assert (cropped == ((0.7, 1.0), (0.8, 1.25), 0.5)) == (name == "images")
        assert name == "images" or source.augment == AugmentConfig()


@pytest.mark.parametrize(("variant", "size", "batch", "samples", "lr", "warmup"), STAGE_1)
def test_stage_1_is_as_published(variant, size, batch, samples, lr, warmup):
    made = get_config("stage1_images")(f"variant={variant},size={size},init=run")
    config = PretrainConfig.from_dict(made.to_dict())
    assert config.model == ViTConfig.from_variant(variant)  # on a CPU, "auto" is float32
    assert config.total_steps == int(samples / batch)
    assert config.optim.warmup_steps == int(warmup * config.total_steps)
    source = config.sources["images"]
    assert (source.batch_size, source.image_size) == (batch, size)
    assert source.budget == (size // 14) ** 2
    assert {name: head.num_classes for name, head in config.heads.items()} == {"images": 2_000_000}
    assert config.init.parts == ("heads/images",)
    assert_published_optimiser(config, lr)


@pytest.mark.parametrize(
    ("variant", "on_a_device", "samples", "weight"),
    [("L/14", (16, 8, 16), 320e6, 1), ("H/14", (16, 8, 8), 1.28e9, 10)],
)
def test_stage_2_is_as_published(variant, on_a_device, samples, weight):
    made = get_config("stage2_video")(f"variant={variant},init=run")
    config = PretrainConfig.from_dict(made.to_dict())
    assert config.model == ViTConfig.from_variant(variant)
    assert config.grad_accum_steps == 4
    images, ocr, video = (128 * 4 * count for count in on_a_device)
    assert config.total_steps == int(samples / (images + ocr + video))
    assert config.optim.warmup_steps == 100  # published: 1 and 7
    shares = {"codec": 0.5, "frames": 0.375, "collage": 0.125}
    sizes = {"images": images, "ocr": ocr} | {name: s * video for name, s in shares.items()}
    assert {name: source.batch_size for name, source in config.sources.items()} == sizes
    weights = {"images": weight, "ocr": 1, **shares}
    assert {name: source.loss_weight for name, source in config.sources.items()} == weights
    heads = {"images": "images", "ocr": "ocr"} | dict.fromkeys(shares, "video")
    assert {name: source.head for name, source in config.sources.items()} == heads
    assert len({config.sources[name].labels for name in shares}) == 1
    for name, source in config.sources.items():
        still = name in ("images", "ocr")
        assert (source.budget, source.image_size) == ((1024, 448) if still else (2048, 0))
    classes = {name: head.num_classes for name, head in config.heads.items()}
    assert classes == {"images": 2_000_000, "ocr": 365_187, "video": 400_000}
    assert config.init.parts == ("heads/images",)
    assert_published_optimiser(config, 5e-5)


@pytest.mark.parametrize("name", ["stage1_images", "stage2_video"])
def test_runlocal_shrinks_a_stage_and_keeps_its_form(name):
    """It trains in test_both_stages_run_locally_one_after_the_other."""
    full, small = (
        PretrainConfig.from_dict(get_config(name)(arg).to_dict()) for arg in (None, "runlocal")
    )
    assert small.total_steps <= 20 and small.model.depth == 2
    assert small.sources.keys() == full.sources.keys()
    for source, shrunk in zip(full.sources.values(), small.sources.values(), strict=True):
        for field in ("head", "labels_drawn", "augment"):
            assert getattr(shrunk, field) == getattr(source, field)
        if source.head == "video":
            assert shrunk.loss_weight == source.loss_weight
            assert shrunk.batch_size == 32 * source.loss_weight
    assert all(head.sample_rate < 1 for head in small.heads.values())
    assert dataclasses.replace(small.optim, lr=full.optim.lr, warmup_steps=0) == (
        dataclasses.replace(full.optim, warmup_steps=0)
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_argument_is_refused(name):
    with pytest.raises(ValueError, match="'no_such_argument' is unknown"):
        get_config(name)("no_such_argument=1")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The record sets of LOCAL=1 scripts/pretrain/train.sh, of 24 clips."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("stages")
    data, sets = str(folder / "data"), folder / "stages"
    view = ["--size", "112", "--budget", "128", "--num-frames", "8", "--workers", "0"]
    cluster = ["--name", "clusters", "--k", "12", "--n", "10"]
    video = [str(sets / mode) for mode in ("codec", "frames", "collage")]
    for verb in (
        ["demo-data", "--out", data, "--train-clips", "24", "--test-clips", "1", "--stills"],
        ["pack", f"{data}/train.csv", "--out", str(sets), "--mode", "codec,frames,collage", *view],
        ["pack", f"{data}/stills", "--out", str(sets), "--size", "112", "--workers", "0"],
        ["cluster", *video, *cluster],
        ["cluster", str(sets / "image"), *cluster],
    ):
        assert codecvit_main(verb) == 0, verb
    return sets


@pytest.mark.slow  # each stage trains in test_a_shipped_config_trains_and_exports too
def test_both_stages_run_locally_one_after_the_other(stages, tmp_path):
    one = run_local("stage1_images", f"records={stages / 'image'}", tmp_path / "one")
    assert one["train/images/loss"] < first_loss(tmp_path / "one")
    two = run_local("stage2_video", f"records={stages},init={tmp_path / 'one'}", tmp_path / "two")
    sources = ("codec", "frames", "collage", "images", "ocr")
    assert {f"train/{name}/loss" for name in sources} <= two.keys()
    assert two["train/loss"] < first_loss(tmp_path / "two", "train/loss")
    # It began with the encoder and the head of stage 1, not anew.
    assert first_loss(tmp_path / "two") < 0.95 * first_loss(tmp_path / "one")


def run_local(name, arguments, workdir):
    values = get_config(name)(f"runlocal,{arguments}").to_dict()
    values |= {"log_steps": 1, "total_steps": 12}
    config = PretrainConfig.from_dict(values)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        return train_on_mesh(config, workdir, mesh)


def first_loss(workdir, name="train/images/loss"):
    return read_metrics(workdir)[0][name]
