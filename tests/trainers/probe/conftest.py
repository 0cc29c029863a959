"""A labelled data set of a few clips as `codecvit probe-data` writes it, and an encoder for it."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from record_writer import RecordWriter

from codecvit.convert.export import export
from codecvit.data.records import Record, Storage, encode_record
from codecvit.models.config import ViTConfig
from codecvit.models.vit import ViT
from codecvit.sequence import PatchSequence
from codecvit.trainers.mesh import make_mesh
from codecvit.trainers.probe.__main__ import probe_on_mesh
from codecvit.trainers.probe.config import AttentiveProbeConfig

PATCH = 8
CLASSES = 3


def write_probe_data(
    folder, *, train=48, test=21, metric="top1", patch=PATCH, views=1, damaged=(), shift=0
):
    """OUT/... with the inputs codec6 (6 of 8 patches) and frames2 (2 frames of 2 x 2 patches).

    The colour of patch 5 tells the labels. The second training example and the third test example
    have no record. Test records with the numbers in `damaged` cannot be decoded; the test list says
    `shift` classes more than the colour does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {"name": "made", "num_classes": CLASSES, "classes": None, "metric": metric}
    (folder / "dataset.json").write_text(json.dumps(about))
    for split, count, seed in (("train", train, 0), ("test", test, 1)):
        rng = np.random.default_rng(seed)
        keys = [f"{split}/{number:03d}" for number in range(count)]
        labels = [[number % CLASSES] for number in range(count)]
        if metric != "top1":
            labels = [sorted({n % CLASSES, n // 2 % CLASSES}) for n in range(count)]
        told = [[(v + shift * (split == "test")) % CLASSES for v in row] for row in labels]
        lines = [{"key": k, "labels": v} for k, v in zip(keys, told, strict=True)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        left_out = {1} if split == "train" else {2}
        packed = [number for number in range(count) if number not in left_out]
        names = [""] if split == "train" else ["", *(f".view{v}" for v in range(1, views))]
        for name in names:
            clips = {n: clip(labels[n], patch, rng) for n in packed}
            for kind in ("codec6", "frames2"):
                bad = damaged if split == "test" else ()
                write_set(folder / split / f"{kind}{name}", kind, patch, keys, clips, bad)
    return folder


def clip(labels, patch, rng):
    """Patches [8, patch, patch, 3] of 2 frames of 2 x 2: patch 5 shows the labels."""
    patches = rng.integers(100, 156, (8, patch, patch, 3)).astype(np.uint8)
    for label in labels:
        patches[5, ..., label] = 255
    return patches


def write_set(folder, kind, patch, keys, clips, damaged):
    positions = np.array([(t, h, w) for t in (0, 63) for h in (0, 1) for w in (0, 1)], np.int32)
    kept = np.array([0, 1, 4, 5, 6, 7]) if kind == "codec6" else np.arange(8)
    mode = "codec" if kind == "codec6" else "frames"
    with RecordWriter(folder, [range(len(keys))]) as writer:
        for number, patches in clips.items():
            record = Record(
                key=keys[number],
                mode=mode,
                view=(2 * patch, 2 * patch),
                budget=len(kept),
                sequence=PatchSequence(patches[kept], positions[kept]),
                descriptor=np.zeros(1, np.float32),
                pts=np.arange(2, dtype=np.float32),
                gaps=np.ones(1, np.float32),
            )
            entry = {"key": record.key, "length": len(kept), "labels": {}}
            good = encode_record(record, Storage("raw"))
            writer.write(number, b"damaged" if number in damaged else good, entry)
        about = {"mode": mode, "size": 2 * patch, "patch": patch, "budget": len(kept)}
        writer.finish({**about, "num_frames": 2}, [])


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A folder with a ViT of width 64 at random."""
    config = ViTConfig(width=64, depth=2, num_heads=1, mlp_dim=96, patch=PATCH)
    patches, positions = np.zeros((1, 1, PATCH**2 * 3), np.uint8), np.zeros((1, 1, 3), np.int32)
    params = ViT(config).init(jax.random.key(0), patches, positions)["params"]
    return export(jax.device_get(params), config, tmp_path_factory.mktemp("encoder") / "vit")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The made data set with two views of the test split."""
    return write_probe_data(tmp_path_factory.mktemp("data"), views=2)


@pytest.fixture
def make_data():
    """`write_probe_data`."""
    return write_probe_data


@pytest.fixture
def values(data, encoder):
    """A probe of a few seconds; tests change what they are about."""
    return {
        "data": str(data),
        "input": "codec6",
        "encoder": str(encoder),
        "epochs": 8,
        "batch_size": 8,
        "lrs": (1e-3, 1e-5),
        "held_out": 0.25,
        "log_steps": 1,
        "mesh": {"data": -1},
    }


@pytest.fixture
def run():
    """A function that runs a probe on so many devices."""

    def run_probe(values, workdir, devices=1):
        config = AttentiveProbeConfig.from_dict(values)
        mesh = make_mesh(config.mesh, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            return probe_on_mesh(config, workdir, mesh)

    return run_probe
