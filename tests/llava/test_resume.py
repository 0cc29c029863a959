"""A run that is killed and started again is the run that never was."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from codecvit.llava.training import loop
from codecvit.llava.training.checkpoints import (
    OPTIMIZER,
    TRAINED,
    latest_checkpoint,
    load_trained,
    restore_checkpoint,
    save_checkpoint,
    trained_parameters,
)
from codecvit.llava.training.config import OptimOptions
from codecvit.llava.training.optim import make_optimizer
from codecvit.llava.training.train import train

from .runs import metrics_of, options, tiny_config, write_data


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def fields(encoder_dir, lm_dir, tmp_path_factory):
    """Of a LoRA run with dropout over several epochs, everything of which draws random numbers."""
    data = write_data(tmp_path_factory.mktemp("data"), images=8, texts=4)
    return {
        "model__encoder": str(encoder_dir),
        "model__language_model": str(lm_dir),
        "data__recipe": str(data),
        "lora__dropout": 0.3,
        "optim__vision_tower_lr": 1e-4,
        "optim__lr": 0.01,
        "optim__weight_decay": 0.1,
        "steps": 7,
        "batch_size": 4,
        "micro_batch_size": 1,
        "checkpoint__every_steps": 2,
    }


def contents(workdir):
    """Step, and the bytes of the weights and moments of the newest checkpoint."""
    folder = latest_checkpoint(workdir)
    return folder.name, (folder / TRAINED).read_bytes(), (folder / OPTIMIZER).read_bytes()


def test_killed_and_started_again_equals_uninterrupted(fields, tmp_path, monkeypatch):
    config = tiny_config("lora", **fields)
    train(config, tmp_path / "whole")

    def dies(self, step, *arguments):
        if step in deaths:
            deaths.remove(step)
            raise Killed
        return one_step(self, step, *arguments)

    one_step, deaths = loop.Loop._step, [1, 5]
    monkeypatch.setattr(loop.Loop, "_step", dies)
    for _ in range(2):  # before the first checkpoint; an epoch on, after the second
        with pytest.raises(Killed):
            train(config, tmp_path / "broken")
    train(config, tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert metrics_of(tmp_path / "broken") == metrics_of(tmp_path / "whole")
    model = [
        (tmp_path / run / "model/model.safetensors").read_bytes() for run in ("whole", "broken")
    ]
    assert model[0] == model[1]
    # Dropout was on: without it, the same run comes to other weights.
    train(tiny_config("lora", **{**fields, "lora__dropout": 0.0}), tmp_path / "plain")
    assert contents(tmp_path / "plain")[1] != contents(tmp_path / "whole")[1]


def test_a_finished_run_does_nothing_more(fields, tmp_path):
    config = tiny_config("lora", **{**fields, "steps": 2})
    train(config, tmp_path)
    before = contents(tmp_path), (tmp_path / "model").stat().st_mtime_ns
    assert train(config, tmp_path) == {}
    assert (contents(tmp_path), (tmp_path / "model").stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim__lr": 0.02}, r"config.optim.lr was 0.01, is 0.02"),
        ({"lora__rank": 8}, r"other|model \["),
        ({"seed": 1}, "config.seed"),
        ({"optim__projector_lr": 0.0}, "does not train"),
    ],
)
def test_another_run_is_not_continued(fields, tmp_path, changes, message):
    train(tiny_config("lora", **{**fields, "steps": 1}), tmp_path)
    with pytest.raises(ValueError, match=message):
        train(tiny_config("lora", **{**fields, "steps": 1, **changes}), tmp_path)


def test_another_data_set_is_not_continued_and_speed_may_change(fields, tmp_path):
    train(tiny_config("lora", **{**fields, "steps": 2, "checkpoint__every_steps": 1}), tmp_path)
    other = write_data(tmp_path / "data", images=9, texts=4)
    with pytest.raises(ValueError, match="the data, or its order are not the same"):
        train(tiny_config("lora", **{**fields, "steps": 2, "data__recipe": str(other)}), tmp_path)
    free = {"micro_batch_size": 2, "gradient_checkpointing": True, "log_steps": 3}
    train(tiny_config("lora", **{**fields, "steps": 2, **free}), tmp_path)


def test_old_checkpoints_go(fields, tmp_path):
    kept = {"steps": 5, "checkpoint__every_steps": 1, "checkpoint__keep": 2}
    train(tiny_config("lora", **{**fields, **kept}), tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000004", "00000005"]


def test_a_half_written_checkpoint_is_not_taken(fields, tmp_path):
    config = tiny_config("lora", **{**fields, "steps": 2})
    train(config, tmp_path)
    (tmp_path / "checkpoints" / "00000009.tmp").mkdir()
    assert latest_checkpoint(tmp_path).name == "00000002"


# --- Several processes -------------------------------------------------------------------------


def launch(config_values, workdir, processes=2):
    """`accelerate launch` on CPUs; its own --cpu starts one process, whatever --num_processes says."""
    script = Path(workdir).with_suffix(".py")
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(
        "import json, sys, torch\n"
        "from codecvit.llava.training.config import parse_config\n"
        "from codecvit.llava.training.train import train\n"
        "torch.set_num_threads(1)\n"
        f"config = parse_config(json.loads({json.dumps(json.dumps(config_values))}))\n"
        f"train(config, {str(workdir)!r})\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--multi_gpu", "--num_processes", processes, "--num_machines", 1]
    flags += ["--main_process_port", port, "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, script]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)),
        env=env,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out[-5000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_two_processes_killed_and_started_again(fields, tmp_path, how):
    values = options("lora", **{**fields, "steps": 40, "checkpoint__every_steps": 3})
    out = finish(launch(values, tmp_path / "whole"))
    assert "2 process(es) on cpu (MULTI_CPU)" in out
    running = launch(values, tmp_path / "broken")
    while latest_checkpoint(tmp_path / "broken") is None:
        assert running.poll() is None, running.communicate()[0][-5000:]
        time.sleep(0.01)
    os.killpg(running.pid, how)
    out = running.communicate(timeout=120)[0]
    reached = int(latest_checkpoint(tmp_path / "broken").name)
    assert reached < 40, "it was too fast to be stopped"
    assert how == signal.SIGKILL or f"SIGTERM: saved step {reached}" in out
    out = finish(launch(values, tmp_path / "broken"))
    assert f"steps {reached} to 40" in out
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert metrics_of(tmp_path / "broken") == metrics_of(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(fields, tmp_path):
    """The same batches and, without dropout, the same updates; a run may change their number."""
    fixed = {**fields, "lora__dropout": 0.0, "optim__eps": 1e-3, "steps": 4}
    values = options("lora", **fixed)
    finish(launch(values, tmp_path / "two"))
    train(tiny_config("lora", **fixed), tmp_path / "one")
    for one, two in zip(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    finish(launch(options("lora", **{**fixed, "steps": 4}), tmp_path / "two"))  # nothing to do


# --- Weights in pieces ---------------------------------------------------------------------------

SHARDED = """
import sys, torch
from pathlib import Path
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from codecvit.llava.training.checkpoints import restore_checkpoint, save_checkpoint
from codecvit.llava.training.config import OptimOptions
from codecvit.llava.training.optim import make_optimizer
sys.path.insert(0, {here!r})
from sharded_model import make, update
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
store = f"file://{{folder}}/store"
torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
model = make()
mesh = init_device_mesh("cpu", (2,))
fully_shard(model.language_model, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = make_optimizer(model, OptimOptions())
restore_checkpoint(folder / "checkpoints" / "00000001", model, optimizer)
update(model, optimizer)
save_checkpoint(folder, model, optimizer, {{"step": 2}}, 5, writes=rank == 0)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_a_checkpoint_of_one_process_goes_on_in_pieces(tmp_path):
    """FSDP2's sharded tensors are put together in a checkpoint, and taken apart from one."""
    sys.path.insert(0, str(Path(__file__).parent))
    from sharded_model import make, update

    model = make()
    optimizer = make_optimizer(model, OptimOptions())
    update(model, optimizer)
    save_checkpoint(tmp_path, model, optimizer, {"step": 1}, 5, writes=True)
    update(model, optimizer)
    save_checkpoint(tmp_path, model, optimizer, {"step": 9}, 5, writes=True)
    code = SHARDED.format(here=str(Path(__file__).parent))
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), str(tmp_path)]) for rank in (0, 1)
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    fresh = make()
    empty = make_optimizer(fresh, OptimOptions())
    restore_checkpoint(tmp_path / "checkpoints" / "00000002", fresh, empty)
    for name, parameter in trained_parameters(model).items():
        other = trained_parameters(fresh)[name]
        torch.testing.assert_close(parameter, other, rtol=1e-6, atol=1e-7)
        for moment, tensor in optimizer.state[parameter].items():
            torch.testing.assert_close(tensor, empty.state[other][moment], rtol=1e-5, atol=1e-9)


def test_tensors_are_loaded_by_name_and_shape():
    own = {"a": torch.nn.Parameter(torch.zeros(2)), "b": torch.nn.Parameter(torch.zeros(3))}
    good = {"a": torch.ones(2), "b": torch.ones(3)}
    load_trained(own, good, "file")
    assert bool((own["b"] == 1).all())
    for bad, message in [
        ({"a": torch.ones(2)}, "file lacks 1 parameters, among them b"),
        ({**good, "c": torch.ones(1)}, "file has 1 tensors that the run does not train.*c"),
        ({**good, "a": torch.ones(4)}, r"file: a is \[4\], in the model \[2\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_trained(own, bad, "file")
