"""Whole runs in real processes: resume, signals, other meshes, damaged input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from compiler import xla_flags

from codecvit.data.pipeline import make_loader
from codecvit.data.records import RecordSet
from codecvit.metrics import MetricWriter, read_metrics
from codecvit.trainers import pretrain
from codecvit.trainers.checkpoint_reading import find_checkpoint, head_centres, restore_params
from codecvit.trainers.checkpoints import Checkpoints
from codecvit.trainers.mesh import make_mesh, put_batch, shard_tree
from codecvit.trainers.preemption import TrainingStopped
from codecvit.trainers.pretrain_config import PretrainConfig
from codecvit.trainers.pretrain_step import init_state, make_train_step
from codecvit.trainers.run_config import CheckpointConfig, MeshConfig
from codecvit.trainers.sources import on_device
from codecvit.trainers.start import compare_with_saved

CONFIG = Path(__file__).parent / "tiny_config.py"


def command(records, workdir, **arguments):
    settings = ",".join(f"{k}={v}" for k, v in {"records": records, **arguments}.items())
    return [
        sys.executable,
        "-m",
        "codecvit",
        "train",
        f"--config={CONFIG}:{settings}",
        f"--workdir={workdir}",
    ]


def start(records, workdir, devices=1, **arguments):
    env = {**os.environ, "XLA_FLAGS": xla_flags(devices)}
    return subprocess.Popen(
        command(records, workdir, **arguments),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output = process.communicate(timeout=240)[0]
    return process.returncode, output


def run(records, workdir, **arguments):
    code, output = finish(start(records, workdir, **arguments))
    assert code == 0, output
    return output


def wait_for_step(process, workdir, step):
    """Blocks until the run has logged `step`."""
    path = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.005)
    raise AssertionError(f"no step {step} in {path}")


@pytest.fixture(scope="module")
def uninterrupted(records, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    run(records, workdir, steps=120, save=10)
    return workdir


def assert_same_run(one, other):
    """Bit-equal encoders and equal losses at every step."""
    a, b = restore_params(one)[0], restore_params(other)[0]
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    losses = [[(r["step"], r["train/loss"]) for r in read_metrics(w)] for w in (one, other)]
    assert losses[0] == losses[1]


def test_a_killed_run_continues_bit_equal(records, tmp_path, uninterrupted):
    process = start(records, tmp_path, steps=120, save=10)
    wait_for_step(process, tmp_path, 37)
    process.kill()
    process.communicate()
    killed_at = int(find_checkpoint(tmp_path).name)
    assert 0 < killed_at < 120
    assert f"steps {killed_at} to 120" in run(records, tmp_path, steps=120, save=10)
    assert_same_run(uninterrupted, tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["100", "110", "120"]


def test_sigterm_saves_exits_zero_and_continues_bit_equal(records, tmp_path, uninterrupted):
    process = start(records, tmp_path, steps=120, save=1000)
    wait_for_step(process, tmp_path, 23)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 0, output
    saved = int(find_checkpoint(tmp_path).name)
    assert 23 <= saved < 120
    assert f"SIGTERM: saved step {saved}" in output
    run(records, tmp_path, steps=120, save=1000)
    assert_same_run(uninterrupted, tmp_path)


@pytest.mark.slow
def test_a_run_moves_between_one_and_eight_devices(records, tmp_path, uninterrupted):
    """Same loss as on one device throughout, whatever mesh wrote the checkpoint."""
    # A run's length sets its schedule: it is stopped by SIGTERM, not shortened.
    for devices, stop_at in ((1, 30), (8, 60)):
        process = start(records, tmp_path, devices=devices, steps=120, save=1000)
        wait_for_step(process, tmp_path, stop_at)
        process.send_signal(signal.SIGTERM)
        code, output = finish(process)
        assert code == 0, output
    run(records, tmp_path, devices=1, steps=120, save=1000)
    moved = {row["step"]: row["train/loss"] for row in read_metrics(tmp_path)}
    for row in read_metrics(uninterrupted):
        # Chaotic growth of rounding differences sets the tolerance late in the run.
        tolerance = 1e-5 if row["step"] <= 40 else 1e-2
        assert moved[row["step"]] == pytest.approx(row["train/loss"], rel=tolerance), row["step"]


@pytest.mark.slow
def test_a_checkpoint_moves_between_meshes_and_the_next_loss_with_it(config_values, tmp_path):
    """1 -> 8 -> 1 devices: each move keeps every bit of the state, and the next loss to 1e-5."""
    config = PretrainConfig.from_dict({**config_values, "mesh": {"data": -1}})
    source = config.sources["video"]
    options = {"labels": source.labels, "labels_drawn": source.labels_drawn}
    with make_loader(RecordSet(source.records), batch_size=8, budget=16, **options) as loader:
        batches = [on_device(next(loader)) for _ in range(3)]
    state, losses = None, {1: [], 8: []}
    for step, (devices, other) in enumerate([(1, 8), (8, 1), (1, 8)]):
        after = {}
        for count in (devices, other):
            mesh = make_mesh(config.mesh, jax.devices()[:count])
            with jax.set_mesh(mesh):
                shapes = jax.eval_shape(lambda k: init_state(config, k), jax.random.key(0))
                places = shard_tree(shapes, mesh, config.mesh)
                if state is None:
                    here = jax.jit(lambda k: init_state(config, k), out_shardings=places)(
                        jax.random.key(0)
                    )
                else:
                    here = restore(tmp_path / str(step), shapes, places)
                    jax.tree.map(np.testing.assert_array_equal, jax.device_get(here), state)
                train = jax.jit(make_train_step(config), out_shardings=(places, None))
                after[count], metrics = train(here, {"video": put_batch(batches[step], mesh)})
                losses[count].append(float(metrics["loss"]))
                if count == devices:
                    save(tmp_path / str(step + 1), after[count])
        state = jax.device_get(after[devices])
    np.testing.assert_allclose(losses[1], losses[8], rtol=1e-5)


def save(folder, state):
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=1))
    checkpoints.save(1, state, {})
    checkpoints.close()


def restore(folder, shapes, places):
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=1))
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        places,
    )
    state, _ = checkpoints.restore(abstract)
    checkpoints.close()
    return state


def test_the_next_batch_after_a_restart_has_the_same_keys(records, uninterrupted):
    _, metadata = restore_params(uninterrupted)
    assert metadata["data"] == {"video": {"phase": "", "examples": 120 * 8}}
    one = make_loader(
        RecordSet(records),
        batch_size=8,
        budget=16,
        start_index=metadata["data"]["video"]["examples"],
    )
    parts = [
        make_loader(
            RecordSet(records),
            batch_size=8,
            budget=16,
            start_index=120 * 8,
            process_index=i,
            process_count=4,
        )
        for i in range(4)
    ]
    together = np.concatenate([next(part)["index"] for part in parts])
    assert sorted(together) == sorted(next(one)["index"])
    for loader in [one, *parts]:
        loader.close()


def test_a_run_writes_what_it_promises(uninterrupted):
    config = json.loads((uninterrupted / "config.json").read_text())
    assert PretrainConfig.from_dict(config).total_steps == 120
    assert restore_params(uninterrupted)[1]["config"] == config
    rows = read_metrics(uninterrupted)
    assert [row["step"] for row in rows] == list(range(1, 121))
    assert rows[-1]["train/loss"] < 0.7 * rows[0]["train/loss"]
    wanted = {
        "perf/samples_per_second",
        "perf/tokens_per_second",
        "perf/input_wait",
        "train/grad_norm/encoder",
    }
    assert wanted <= rows[-1].keys()
    assert 0 <= rows[-1]["perf/input_wait"] <= 1
    assert "perf/mfu" not in rows[-1]  # the peak of a CPU is unknown
    assert list((uninterrupted / "tensorboard").iterdir())


def test_a_finished_run_is_left_as_it_is(records, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    assert "steps 120 to 120" in run(records, tmp_path, steps=120, save=10)
    assert_same_run(uninterrupted, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--config.optim.lrr=1"], "lrr", marks=pytest.mark.slow),
        (["--config.sources.video.records=nowhere"], "nowhere is no finished record set"),
        pytest.param(["--config.mesh.data=3"], "but 1 are there", marks=pytest.mark.slow),
        (["--config.sources.video.budget=8"], "budget = 8 is below the longest sequence"),
        pytest.param(
            ["--config.heads.main.num_classes=5"], "labels 'clusters'", marks=pytest.mark.slow
        ),
    ],
)
def test_wrong_settings_are_named_without_a_traceback(records, tmp_path, arguments, message):
    done = subprocess.run(
        command(records, tmp_path, steps=2) + arguments,
        env={**os.environ, "XLA_FLAGS": xla_flags()},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_batch_that_the_devices_do_not_divide_is_refused(config_values, tmp_path):
    config_values["sources"]["video"]["batch_size"] = 12
    config = PretrainConfig.from_dict({**config_values, "mesh": {"data": -1}})
    with pytest.raises(ValueError, match="batch_size = 12 must be a multiple of the 8 devices"):
        pretrain.pretrain(config, tmp_path)


def test_another_configuration_does_not_continue_a_run(uninterrupted, config_values, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    config_values["model"]["width"] = 128
    config_values["model"]["num_heads"] = 2
    with pytest.raises(
        ValueError, match="was written by another configuration; encoder/.* the run needs"
    ):
        pretrain.pretrain(
            PretrainConfig.from_dict({**config_values, "mesh": {"data": -1}}), tmp_path
        )


def test_a_head_is_taken_over_for_the_same_classes_only(config_values, tmp_path):
    """12 and 13 classes both fill an array of 16 rows."""
    values = {**config_values, "total_steps": 0, "optim": {}}
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])

    def start(name, **changes):
        with jax.set_mesh(mesh):
            config = PretrainConfig.from_dict({**values, **changes})
            pretrain.train_on_mesh(config, str(tmp_path / name), mesh)
        return head_centres(tmp_path / name, "main")

    first = start("one")
    init = {"checkpoint": str(tmp_path / "one"), "parts": ["heads/main"]}
    np.testing.assert_array_equal(start("two", init=init, seed=1), first)
    heads = {"main": {"num_classes": 13}}
    with pytest.raises(ValueError, match=r"'main' was trained for 12 classes, .*num_classes = 13"):
        start("three", init=init, heads=heads)
    assert (start("four", init={**init, "parts": []}, heads=heads, seed=1) != first).any()


def test_another_model_of_the_same_shapes_does_not_continue_a_run(
    uninterrupted, config_values, tmp_path
):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    config_values["model"]["num_heads"] = 2
    config = PretrainConfig.from_dict({**config_values, "mesh": {"data": -1}})
    with pytest.raises(ValueError, match=r"another model: config\.model\.num_heads: 1 then, 2 now"):
        pretrain.pretrain(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["num_heads"] == 1


def test_what_is_changed_when_a_run_goes_on_is_told(config_values, caplog):
    config = PretrainConfig.from_dict(config_values).to_dict()
    saved = json.loads(json.dumps(config))
    compare_with_saved(saved, config, 7)
    assert not caplog.records
    now = {**config, "seed": 5, "model": {**config["model"], "remat": "full"}}
    now["sources"] = {"video": {**config["sources"]["video"], "phases": {"late": {"from_step": 9}}}}
    compare_with_saved(saved, now, 7)
    (record,) = caplog.records
    assert "goes on from step 7 with another configuration: " in record.getMessage()
    for part in (
        'config.model.remat: "none" then, "full" now',
        "config.seed: 0 then, 5 now",
        "config.sources.video.phases.late.from_step: nothing then, 9 now",
    ):
        assert part in record.getMessage()


def test_nan_steps_in_a_row_end_the_run(config_values, tmp_path):
    config_values["optim"] = {"lr": 1e30, "warmup_steps": 0}
    config_values["total_steps"] = 40
    config = PretrainConfig.from_dict({**config_values, "mesh": {"data": -1}, "max_nan_steps": 3})
    with pytest.raises(
        TrainingStopped,
        match=r"not finite for 3 steps in a row .*losses: video nan; step \d+: loss",
    ):
        pretrain.pretrain(config, tmp_path)


def test_unreadable_records_are_counted_up_to_a_limit(records, config_values, tmp_path):
    damaged = tmp_path / "records"
    shutil.copytree(records, damaged)
    shard = next(damaged.glob("*.array_record"))
    data = bytearray(shard.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 5000] = bytes(5000)
    shard.write_bytes(data)
    config_values["sources"]["video"]["records"] = str(damaged)
    config = PretrainConfig.from_dict({**config_values, "mesh": {"data": -1}, "total_steps": 10})
    metrics = pretrain.pretrain(config, tmp_path / "counted")
    assert metrics["train/bad_records"] > 0
    assert metrics["data/video/unreadable/damaged"] > 0
    assert np.isfinite(metrics["train/loss"])
    strict = PretrainConfig.from_dict({**config.to_dict(), "max_bad_records": 0})
    with pytest.raises(TrainingStopped, match="unreadable records so far"):
        pretrain.pretrain(strict, tmp_path / "strict")


def test_lines_after_the_last_checkpoint_are_dropped(tmp_path):
    writer = MetricWriter(tmp_path, 10)
    for step in range(1, 6):
        writer.write(step, {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    writer = MetricWriter(tmp_path, 10, start_step=3)
    writer.write(4, {"loss": 40.0})
    writer.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 40),
    ]


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere: neither a checkpoint"):
        find_checkpoint(tmp_path / "nowhere")
