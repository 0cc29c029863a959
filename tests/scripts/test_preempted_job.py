"""A real run of two processes as a Slurm job that is preempted in its first stage."""

from __future__ import annotations

import os
import signal
import time

import jax
import numpy as np
import pytest
from compiler import xla_flags
from record_writer import RecordWriter

from codecvit.data.records import Record, RecordSet, Storage, encode_record, save_labels
from codecvit.metrics import read_metrics
from codecvit.sequence import PatchSequence
from codecvit.trainers.checkpoint_reading import restore_params

STEPS = 40
# B/14 at 224 and 448, shrunk to milliseconds a step.
TINY = [
    "--config.model.width=64",
    "--config.model.depth=2",
    "--config.model.num_heads=1",
    "--config.model.mlp_dim=96",
    f"--config.total_steps={STEPS}",
    "--config.optim.warmup_steps=2",
    "--config.checkpoint.every_steps=1000",
    "--config.checkpoint.keep_every_steps=0",
    "--config.log_steps=1",
    "--config.sources.images.batch_size=8",
    "--config.sources.images.budget=16",
    "--config.sources.images.image_size=0",
    "--config.sources.images.labels_drawn=2",
    "--config.sources.images.augment.crop_area=(1.0,1.0)",
    "--config.sources.images.augment.crop_aspect=(1.0,1.0)",
    # A process of its own: a scheduler's signal goes to it too.
    "--config.sources.images.loader_workers=1",
]


@pytest.fixture
def records(tmp_path):
    """RECORDS with a set `image` of 40 records, of which one would do for a shard of its own."""
    folder = tmp_path / "records" / "image"
    folder.parent.mkdir()
    rng = np.random.default_rng(0)
    with RecordWriter(folder, [range(40)]) as writer:
        for place in range(40):
            patches = rng.integers(0, 256, (9, 14, 14, 3)).astype(np.uint8)
            grid = np.stack([np.zeros(9), np.arange(9) // 3, np.arange(9) % 3], axis=1)
            record = Record(
                key=f"image{place:02d}",
                mode="codec",
                view=(42, 42),
                budget=16,
                sequence=PatchSequence(patches, grid.astype(np.int32)),
                descriptor=np.ones(3, np.float32),
                pts=np.zeros(1, np.float32),
                gaps=np.zeros(0, np.float32),
                labels={},
            )
            entry = {"key": record.key, "length": 9, "labels": {}}
            writer.write(place, encode_record(record, Storage("raw")), entry)
        writer.finish({"mode": "codec", "size": 42, "patch": 14, "budget": 16}, [])
    labels = (np.arange(40)[:, None] + np.arange(3)) % 12
    save_labels(RecordSet(folder), "clusters", labels.astype(np.int32), {"num_classes": 12})
    return folder.parent


def metrics_of(workdir):
    return {row["step"]: row["train/loss"] for row in read_metrics(workdir)}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_it_goes_on_and_ends_as_an_undisturbed_run(shell, records):
    shell.stand_in("srun", "sbatch", "scontrol")
    caches = {k: v for k, v in os.environ.items() if k.startswith(("JAX_COMP", "JAX_PERS"))}
    variables = {
        **caches,
        "RECORDS": str(records),
        "VARIANT": "B/14",
        "IMAGE_CLASSES": "12",
        "GPUS": "0",
        "XLA_FLAGS": xla_flags(2),
    }
    gpu = ["bash", "scripts/pretrain/train_gpu.sh", *TINY]
    whole = shell.place / "whole"
    status, output = shell.run(*gpu, **variables, EXP_PATH=str(whole), PROCESSES="2", timeout=1200)
    assert status == 0, output

    parts = shell.place / "parts"
    disk = shell.place / "disk"
    disk.mkdir()
    job = ["sbatch", "--ntasks-per-node=2", "--gpus-per-node=0"]
    started = shell.start(
        *job,
        "scripts/pretrain/train.slurm",
        *TINY,
        **variables,
        EXP_PATH=str(parts),
        LOCAL_DATA=str(disk),
    )
    path = parts / "B-14" / "224" / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while not (path.exists() and '"step": 5,' in path.read_text()):
        assert started.poll() is None, started.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(int((shell.place / "step.pid").read_text()), signal.SIGTERM)
    output = started.communicate(timeout=1200)[0]
    assert started.returncode == 0, output
    first, second = output.split("sbatch: start 2")
    assert f"of {STEPS}: run it again and it goes on" in first
    assert "SIGTERM: saved step" in first and "B-14/448" not in first.split("SIGTERM: saved")[1]
    assert f"done: {parts}/B-14/448" in second

    for stage in ("224", "448"):
        one, other = whole / "B-14" / stage, parts / "B-14" / stage
        a, b = restore_params(one)[0], restore_params(other)[0]
        jax.tree.map(np.testing.assert_array_equal, a, b)
        assert metrics_of(one) == metrics_of(other)
        assert list(metrics_of(other)) == list(range(1, STEPS + 1))
    # The job read its copies on the local disk.
    assert list((disk / "codecvit").rglob("*.array_record"))
