"""Every shipped config trains, shrunk to two steps, and its checkpoint goes on to an export."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

import codecvit
from codecvit.convert.export import main as export
from codecvit.data.records import Record, RecordWriter, Storage, encode_record, save_labels
from codecvit.sequence import PatchSequence
from codecvit.trainers.checkpoints import find_checkpoint
from codecvit.trainers.config import PretrainConfig
from codecvit.trainers.metrics import read_metrics
from codecvit.trainers.pretrain import pretrain

CONFIGS = Path(__file__).resolve().parents[2] / "src" / "configs"
NAMES = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem not in ("__init__", "common"))


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
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_trains_and_exports(name, records, tmp_path):
    values = get_config(name)(None).to_dict()
    PretrainConfig.from_dict(values)
    values["model"] |= {"width": 64, "depth": 2, "num_heads": 1, "mlp_dim": 96}
    for source in values["sources"].values():
        source |= {"records": str(records), "batch_size": 8, "budget": 16, "loader_workers": 0}
    for probe in values["probes"].values():
        probe |= {"train_records": str(records), "test_records": str(records)}
    values |= {"total_steps": 2, "log_steps": 1}
    values["optim"]["warmup_steps"] = 1
    metrics = pretrain(PretrainConfig.from_dict(values), tmp_path / "run")
    assert np.isfinite(metrics["train/loss"])
    probed = {key for row in read_metrics(tmp_path / "run") for key in row if "probe/" in key}
    assert {f"probe/{probe}/linear_top1" for probe in values["probes"]} <= probed
    assert find_checkpoint(tmp_path / "run").name == "2"

    encoder = codecvit.load(tmp_path / "run")
    image = PatchSequence(np.zeros((1, 14, 14, 3), np.uint8), np.zeros((1, 3), np.int32))
    assert encoder(image).pooled.shape == (64,)
    folder = tmp_path / f"export_{name}"
    assert export([str(tmp_path / "run"), "--out", str(folder)]) == 0
    again = codecvit.load(folder)
    assert again.config == encoder.config
    jax.tree.map(np.testing.assert_array_equal, again.params, encoder.params)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_argument_is_refused(name):
    with pytest.raises(ValueError, match="'no_such_argument' is unknown"):
        get_config(name)("no_such_argument=1")
