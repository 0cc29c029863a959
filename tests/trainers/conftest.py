"""A tiny record set and configuration for the trainers' tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from record_writer import RecordWriter
from train_steps import take_steps

from codecvit.data.records import Record, RecordSet, Storage, encode_record, save_labels
from codecvit.sequence import PatchSequence
from codecvit.trainers import pretrain_step

CLASSES = 12


@pytest.fixture(scope="session")
def records(tmp_path_factory) -> Path:
    """40 records of 5 to 16 patches, patch 14, whose colour tells the class."""
    folder = tmp_path_factory.mktemp("records") / "codec"
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (CLASSES, 3))
    with RecordWriter(folder, [range(40)]) as writer:
        for place in range(40):
            length = int(rng.integers(5, 17))
            noise = rng.integers(-20, 20, (length, 14, 14, 3))
            patches = np.clip(colours[place % CLASSES] + noise, 0, 255).astype(np.uint8)
            positions = np.stack(
                [np.arange(length), np.arange(length) % 3, np.zeros(length)], axis=1
            )
            key = f"clip{place:02d}"
            record = Record(
                key=key,
                mode="codec",
                view=(28, 28),
                budget=16,
                sequence=PatchSequence(patches, positions.astype(np.int32)),
                descriptor=colours[place % CLASSES].astype(np.float32),
                pts=np.arange(length, dtype=np.float32),
                gaps=np.ones(length - 1, np.float32),
                labels={"colour": str(place % CLASSES)},
            )
            entry = {"key": key, "length": length, "labels": record.labels}
            writer.write(place, encode_record(record, Storage("raw")), entry)
        description = {"mode": "codec", "size": 28, "patch": 14, "budget": 16}
        record_set = writer.finish(description, [])
    first = np.arange(40)[:, None] % CLASSES
    labels = (first + np.arange(3)) % CLASSES
    save_labels(RecordSet(folder), "clusters", labels.astype(np.int32), {"num_classes": CLASSES})
    assert len(record_set) == 40
    return folder


@pytest.fixture
def config_values(records) -> dict:
    """A run of a few milliseconds a step; tests change what they are about."""
    return {
        "model": {"variant": "Ti/14", "width": 64, "depth": 2, "num_heads": 1, "mlp_dim": 96},
        "sources": {
            "video": {"records": str(records), "batch_size": 8, "budget": 16, "labels_drawn": 2}
        },
        "heads": {"main": {"num_classes": CLASSES}},
        "total_steps": 6,
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "log_steps": 1,
        "mesh": {"data": 1},
    }


@pytest.fixture
def batch():
    """A function that makes random rows for one source."""
    return _batch


@pytest.fixture
def run():
    """A function that takes a few optimiser steps of the source `video`."""
    return _run


def _batch(seed=0, rows=8, length=16):
    rng = np.random.default_rng(seed)
    return {
        "patches": rng.integers(0, 256, (rows, length, 588), np.uint8),
        "positions": rng.integers(0, 16, (rows, length, 3)).astype(np.int32),
        "length": rng.integers(4, length + 1, rows).astype(np.int32),
        "labels": rng.integers(0, CLASSES, (rows, 2)).astype(np.int32),
        "weight": np.ones(rows, np.float32),
    }


def _run(config, batches, devices=1):
    return take_steps(pretrain_step, config, [{"video": rows} for rows in batches], devices)
