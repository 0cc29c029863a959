"""Whole probes on made data: what they find, and what must not change it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from compiler import xla_flags

from codecvit.__main__ import main
from codecvit.configs.probe import get_config
from codecvit.data.records import RecordSet
from codecvit.evaluators.knn import UNRANKED
from codecvit.metrics import read_metrics
from codecvit.trainers.mesh import make_mesh
from codecvit.trainers.probe.config import AttentiveProbeConfig
from codecvit.trainers.probe.encoders import FrozenEncoder
from codecvit.trainers.probe.examples import read_probe_data
from codecvit.trainers.probe.passes import Passes, Seen
from codecvit.trainers.probe.scores import score_test
from codecvit.trainers.run_config import MeshConfig

CONFIG = Path(__file__).resolve().parents[3] / "src" / "configs" / "probe.py"


@pytest.fixture(scope="module")
def found(data, encoder, tmp_path_factory):
    """One run by the command line in a process of its own: its folder and its results."""
    workdir = tmp_path_factory.mktemp("found")
    assert finish(start(data, encoder, workdir, "--config.baselines=True"))[0] == 0
    return workdir, json.loads((workdir / "results.json").read_text())


def start(data, encoder, workdir, *overrides, **variables):
    command = [sys.executable, "-m", "codecvit", "probe", f"--workdir={workdir}"]
    command += [f"--config={CONFIG}:runlocal,data={data},encoder={encoder},input=codec6"]
    command += ["--config.batch_size=8", "--config.log_steps=1", "--config.lrs=(1e-3, 1e-5)"]
    command += ["--config.epochs=10", "--config.checkpoint.every_steps=5", *overrides]
    env = {**os.environ, "XLA_FLAGS": xla_flags(), **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=env, **pipes)


def finish(process):
    output = process.communicate(timeout=240)[0]
    return process.returncode, output


def numbers(workdir):
    """Every logged number but times and rates."""
    return [
        {k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")}
        for row in read_metrics(workdir)
    ]


def test_it_learns_and_an_example_without_a_record_is_wrong(found):
    workdir, results = found
    assert results["lr"] == 1e-3 and results["val"]["top1"] > 0.9
    assert 18 / 21 <= results["test"]["top1"] <= 20 / 21  # the third example is never seen
    assert (results["test_examples"], results["test_missing"], results["train_missing"]) == (
        21,
        1,
        1,
    )
    assert results["views"] == 2 and results["tokens"] == 6
    rank = np.load(workdir / "test.npz", allow_pickle=False)
    assert rank["rank"][2] == UNRANKED and rank["keys"][2] == "test/002"
    assert np.mean(rank["rank"] == 0) == results["test"]["top1"]
    left_out = json.loads((workdir / "left_out.json").read_text())
    assert left_out["test_missing"] == ["test/002"] and left_out["train_missing"] == ["train/001"]
    for name in ("mean_knn", "mean_linear", "pooled_knn", "pooled_linear"):
        assert 0.5 < results["baselines"][f"{name}_top1"] <= 20 / 21
    values = json.loads((workdir / "config.json").read_text())
    assert AttentiveProbeConfig.from_dict(values).held_out == 0.2


@pytest.mark.slow
def test_the_test_split_chooses_nothing(found, make_data, encoder, tmp_path):
    """With other test labels all but the test's own numbers stay as they were."""
    workdir, results = found
    other = make_data(tmp_path / "data", views=2, shift=1)
    assert finish(start(other, encoder, tmp_path / "run"))[0] == 0
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    assert again["test"]["top1"] < 0.2 < results["test"]["top1"]
    assert [(again[k], results[k]) for k in ("lr", "epoch", "val") if again[k] != results[k]] == []
    assert numbers(tmp_path / "run")[:-1] == numbers(workdir)[:-1]


@pytest.mark.slow  # the loop is that of tests/trainers/test_pretrain.py
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_stopped_continues_bit_equal(found, data, encoder, tmp_path, how):
    process = start(data, encoder, tmp_path, "--config.baselines=True")
    path, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 200
    while not (path.exists() and '"step": 12,' in path.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(how)
    code, output = finish(process)
    if how == signal.SIGTERM:
        assert code == 0 and "SIGTERM: saved step" in output
    assert not (tmp_path / "results.json").exists()
    code, output = finish(start(data, encoder, tmp_path, "--config.baselines=True"))
    assert code == 0 and "steps 0 to" not in output
    workdir, results = found
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert numbers(tmp_path) == numbers(workdir)


@pytest.mark.slow
def test_two_processes_find_the_same(found, data, encoder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    started = [
        start(data, encoder, tmp_path, "--config.baselines=True", **several, JAX_PROCESS_ID=str(i))
        for i in range(2)
    ]
    for code, output in map(finish, started):
        assert code == 0, output
    workdir, results = found
    assert json.loads((tmp_path / "results.json").read_text()) == results
    for a, b in zip(numbers(tmp_path), numbers(workdir), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-4)


@pytest.mark.slow
def test_one_and_eight_devices_find_the_same(values, run, tmp_path):
    one = run(values, tmp_path / "one", 1)
    eight = run(values, tmp_path / "eight", 8)
    assert one == eight
    logged = numbers(tmp_path / "one")
    assert run(values, tmp_path / "one", 1) == one  # it is finished: nothing is done twice
    assert numbers(tmp_path / "one") == logged
    for a, b in zip(numbers(tmp_path / "one"), numbers(tmp_path / "eight"), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-4)
    for key in ("keys", "rank"):
        arrays = (
            np.load(tmp_path / n / "test.npz", allow_pickle=False)[key] for n in ("one", "eight")
        )
        np.testing.assert_array_equal(*arrays)


def test_a_record_that_cannot_be_read_is_wrong(values, run, make_data, tmp_path):
    folder = make_data(tmp_path / "data", damaged=(0, 4))
    results = run(values | {"data": str(folder)}, tmp_path / "run")
    assert results["test_unreadable"] == 2 and results["test"]["top1"] <= 18 / 21
    left_out = json.loads((tmp_path / "run" / "left_out.json").read_text())
    assert left_out["test_unreadable"] == ["test/000", "test/004"]


@pytest.mark.slow
def test_bfloat16_learns_too(values, run, tmp_path):
    results = run(values | {"dtype": "bfloat16"}, tmp_path / "bf16")
    assert 18 / 21 <= results["test"]["top1"] <= 20 / 21
    run(values | {"dtype": "float32", "epochs": 1}, tmp_path / "f32")
    losses = [numbers(tmp_path / name)[0]["train/loss/lr=0.001"] for name in ("bf16", "f32")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.slow  # what a flip does is proved in tests/data
def test_a_flip_is_drawn_only_when_asked_for(values, run, tmp_path):
    short = values | {"epochs": 1}
    off = run(short, tmp_path / "off")
    run(short | {"flip": 1.0}, tmp_path / "on")
    losses = [numbers(tmp_path / name)[-3]["train/loss/lr=0.001"] for name in ("off", "on")]
    assert losses[0] != losses[1] and AttentiveProbeConfig.from_dict(values).flip == 0
    assert off["epoch"] == 1


def test_several_labels_an_example(values, run, make_data, tmp_path):
    folder = make_data(tmp_path / "data", metric="mean_average_precision")
    results = run(values | {"data": str(folder), "epochs": 12}, tmp_path / "run")
    assert results["test"]["mean_average_precision"] > 0.85
    kept = np.load(tmp_path / "run" / "test.npz", allow_pickle=False)
    assert np.isneginf(kept["scores"][2]).all() and kept["targets"].sum(axis=1).max() == 2
    with pytest.raises(ValueError, match=r"config\.baselines needs one label an example"):
        run(values | {"data": str(folder), "baselines": True}, tmp_path / "other")


def test_an_encoder_of_transformers(values, run, tmp_path):
    """A random SigLIP on frames; an unreadable row and a rest of a batch go the same way."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    sizes |= {"intermediate_size": 64, "image_size": 16, "patch_size": 8}
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes))
    model.save_pretrained(tmp_path / "model")
    processor = {"size": {"height": 16, "width": 16}}
    processor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
    changes = {"encoder": f"hf:{tmp_path / 'model'}", "input": "frames2", "label": "SigLIP"}
    results = run(values | changes | {"epochs": 12, "baselines": True}, tmp_path / "run")
    assert results["encoder"] == "SigLIP" and results["mode"] == "frames"
    assert 15 / 21 < results["test"]["top1"] <= 20 / 21
    assert results["tokens"] == 2 * (16 // 8) ** 2
    assert set(results["baselines"]) == {"mean_knn_top1", "mean_linear_top1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 9}, r"config\.batch_size = 9 must be a multiple of the 8 devices"),
        ({"encoder": "hf:somewhere"}, "sees whole frames, .* mode 'codec'"),
        ({"encoder": "nowhere"}, "nowhere is no folder"),
        ({"ema": True}, "holds no moving average"),
        ({"encoder": "hf:somewhere", "ema": True}, "hf:somewhere has no moving average"),
    ],
)
def test_a_probe_that_cannot_be_is_refused(values, run, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run(values | change, tmp_path, 8)


def test_other_patches_than_the_encoders_are_refused(values, run, make_data, tmp_path):
    folder = make_data(tmp_path / "data", patch=4)
    with pytest.raises(ValueError, match=r"patches of 4 pixels, .* takes 8: pack with --patch 8"):
        run(values | {"data": str(folder)}, tmp_path / "run")


def test_flags_of_other_trainers_are_not_understood(capsys):
    assert main(["probe", f"--config={CONFIG}:encoder=e", "--dry-run"]) == 2
    assert "dry_run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arg", "epochs", "batch_size"),
    [("dataset=ssv2", 10, 32), ("dataset=hmdb51", 30, 16), ("dataset=k400", 10, 128)],
)
def test_the_recipe_of_a_data_set(arg, epochs, batch_size):
    values = get_config(f"{arg},encoder=runs/L,input=frames16").to_dict()
    config = AttentiveProbeConfig.from_dict(values)
    assert (config.epochs, config.batch_size) == (epochs, batch_size)
    assert config.data == f"probe_data/{arg.removeprefix('dataset=')}"
    assert (config.input, config.label_smoothing, config.clip_norm) == ("frames16", 0.1, 5.0)
    assert 1e-4 in config.lrs
    with pytest.raises(ValueError, match="'no_such_argument' is unknown"):
        get_config("no_such_argument=1")


# --- Passes over the records ---------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 8, 19])
def test_a_pass_sees_every_record_once(data, count):
    """Fewer than a batch, exactly one, and several with a rest: none is dropped or seen twice."""
    records = RecordSet(data / "train" / "codec6")
    chosen = np.arange(count) * 2
    fields = {"data": "d", "input": "i", "encoder": "e", "batch_size": 8}
    config = AttentiveProbeConfig.from_dict(fields)
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])

    def encode(rows):
        sums = jax.numpy.asarray(rows["patches"].astype(np.float32).sum(axis=2))[..., None]
        return {"tokens": sums, "length": jax.numpy.asarray(rows["length"])}

    def scores(heads, features):
        return heads[:, None, None] * features["tokens"][None, :, 0]

    passes = Passes(config, records, chosen, 6, FrozenEncoder(1, encode, 6, 0.0), scores, mesh)
    for _ in range(2):  # a pass can be repeated
        with jax.set_mesh(mesh):
            seen = list(passes(np.array([1.0, 2.0], np.float32), features=True))
        index = np.concatenate([part.index for part in seen])
        np.testing.assert_array_equal(np.sort(index), chosen)
        for part in seen:
            for row, number in enumerate(part.index):
                patches = records[int(number)].sequence.flat().astype(np.float32)
                assert part.scores[:, row, 0].tolist() == [patches[0].sum(), 2 * patches[0].sum()]
                mean = part.features["mean"][row, 0]
                assert mean == pytest.approx(patches.sum() / 6)
    passes.close()


def test_views_are_averaged_as_probabilities(data):
    found = read_probe_data(data, "codec6")
    missing_in_one = found.test.rows[1].copy()
    first = missing_in_one[0]
    tables = np.random.default_rng(0).dirichlet([1, 1, 1], (2, 20)).astype(np.float32)

    def view(number):
        def look(head, features=False):
            readable = np.arange(20) != (first if number else -1)
            yield Seen(np.arange(20), readable, tables[number][None], {})

        return look

    test = score_test([view(0), view(1)], None, found, False)
    mean = tables.mean(axis=0)
    mean[first] = tables[0, first]  # the second view of the first example cannot be read
    labels = found.test.targets_NC.argmax(axis=1)
    for example, row in enumerate(found.test.rows[0]):
        rank = test.outcomes["rank"][example]
        expected = UNRANKED if row < 0 else int((mean[row] > mean[row, labels[example]]).sum())
        assert rank == expected
    assert test.seen_N.sum() == 20
