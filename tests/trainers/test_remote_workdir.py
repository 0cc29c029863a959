"""Runs whose work directory lies in a bucket, against a stand-in server (fake_gcs.py)."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_gcs import serving
from train_processes import finish, run, start

from codecvit.trainers.checkpoint_reading import checkpoint_path, restore_params

needs_gcsfs = pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is None, reason="needs gcsfs (extra gcs)"
)


@pytest.fixture(scope="module")
def bucket():
    with serving() as store:
        yield store


@pytest.fixture(scope="module")
def local(records, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("local")
    run(records, workdir, processes=1, steps=12, save=4, keep=2)
    return workdir


def rows(text):
    return {row["step"]: row["train/loss"] for row in map(json.loads, text.splitlines())}


def python(bucket, code):
    """Runs code where gs:// leads to the bucket."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **bucket.environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_gcsfs
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_in_a_bucket_is_the_run_in_a_folder(records, tmp_path, bucket, local, processes):
    """Stopped and continued; and read, watched and drawn from there."""
    name = f"run{processes}"
    url, environment = f"gs://bucket/{name}", bucket.environment
    begun = start(records, url, processes, None, environment, steps=12, save=4, keep=2)
    deadline = time.monotonic() + 200
    while f"{name}/checkpoints/4/commit_success.txt" not in bucket.objects:
        assert time.monotonic() < deadline and begun[0].poll() is None, begun[0].communicate()
        time.sleep(0.01)
    begun[-1].send_signal(signal.SIGTERM)
    codes, outputs = finish(begun)
    assert codes == [0] * processes, "\n".join(outputs)
    run(records, url, processes, environment, steps=12, save=4, keep=2)

    names = {key.removeprefix(f"{name}/") for key in bucket.objects if key.startswith(f"{name}/")}
    kept = {n.split("/")[1] for n in names if n.startswith("checkpoints/")}
    assert len(kept) == 2 and "12" in kept
    folders = {n.split("/")[0] for n in names}
    assert {"checkpoints", "config.json", "heartbeats", "metrics.jsonl", "tensorboard"} <= folders
    here = rows((local / "metrics.jsonl").read_text())
    there = rows(bucket.objects[f"{name}/metrics.jsonl"][0].decode())
    assert list(here) == list(there)
    np.testing.assert_allclose(list(here.values()), list(there.values()), rtol=1e-4)

    copy = tmp_path / "12"
    for key, (content, _) in bucket.objects.items():
        if key.startswith(f"{name}/checkpoints/12/"):
            path = copy / key.removeprefix(f"{name}/checkpoints/12/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    a, b = restore_params(local)[0], restore_params(copy)[0]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), a, b)

    assert f"{processes} done" in python(
        bucket,
        f"from codecvit.__main__ import main; assert main(['watch', '{url}', '--once']) == 0",
    )
    loaded = python(
        bucket,
        f"import codecvit; e = codecvit.load('{url}'); print('WIDTH', e.config.width)\n"
        "from codecvit.convert.load import read_checkpoint\n"
        f"print('STEP', read_checkpoint('{url}').metrics['step'])",
    )
    assert "WIDTH 64" in loaded and "STEP 12" in loaded
    assert not Path("gs:").exists()


@needs_gcsfs
@pytest.mark.slow
def test_an_unfinished_checkpoint_is_not_taken_and_a_torn_one_is_moved(records, bucket):
    url, environment = "gs://bucket/torn", bucket.environment
    run(records, url, 1, environment, steps=8, save=4)
    del bucket.objects["torn/checkpoints/8/commit_success.txt"]
    found = python(
        bucket,
        "from codecvit.trainers.checkpoint_reading import find_checkpoint\n"
        f"print('FOUND', find_checkpoint('{url}'))",
    )
    assert "FOUND gs://bucket/torn/checkpoints/4" in found
    run(records, url, 1, environment, steps=8, save=4)  # does the last steps again
    assert "torn/checkpoints/8/commit_success.txt" in bucket.objects
    damaged = [n for n in bucket.objects if re.match("torn/checkpoints/8/encoder/.*/d/", n)]
    for name in damaged:
        del bucket.objects[name]
    (output,) = run(records, url, 1, environment, steps=8, save=4)
    assert "is passed over" in output
    assert any(n.startswith("torn/torn/8/encoder/") for n in bucket.objects)
    assert "torn/checkpoints/8/commit_success.txt" in bucket.objects


@needs_gcsfs
@pytest.mark.slow
def test_logs_of_a_bucket_are_continued(records, bucket):
    flags = ["--config.optim.lr=1e30", "--config.optim.warmup_steps=0", "--config.max_nan_steps=2"]
    for _ in range(2):
        begun = start(records, "gs://bucket/nan", 1, {0: flags}, bucket.environment, steps=6)
        assert finish(begun)[0] == [1]
    log = bucket.objects["nan/logs/process-000.log"][0].decode()
    assert log.count("the run ends") == 2
    beat = json.loads(bucket.objects["nan/heartbeats/process-00000.json"][0])
    assert beat["phase"] == "failed" and "not finite" in beat["problem"]


def test_checkpoints_go_where_orbax_stores_arrays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoint_path("run") == tmp_path / "run"
    with pytest.raises(ValueError, match=r"s3://b/run: checkpoints lie in .* \(gs://\)"):
        checkpoint_path("s3://b/run")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="gs://b/run: .* pip install gcsfs"):
        checkpoint_path("gs://b/run")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert str(checkpoint_path("gs://b/run")) == "gs://b/run"
