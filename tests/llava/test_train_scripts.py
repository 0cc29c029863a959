"""The launch scripts of the published recipes, as far as a dry run goes."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest

from codecvit.configs.llava import get_config
from codecvit.llava.training.config import parse_config


@pytest.fixture
def places(tmp_path):
    """What the scripts want to exist."""
    for folder in ("encoder", "stage1"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
    (tmp_path / "rows.json").write_text("[]")
    names = {"ENCODER": "encoder", "INIT": "stage1", "DATA": "rows.json"}
    return {name: str(tmp_path / path) for name, path in names.items()}


def dry_run(root, script, *flags, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    return subprocess.run(
        ["bash", str(root / "scripts" / "llava" / script), *flags],
        env={**kept, "DRY_RUN": "1", "GPUS": "8", **variables},
        capture_output=True,
        text=True,
    )


def command_of(done):
    assert done.returncode == 0, done.stderr
    return shlex.split(next(x for x in done.stdout.splitlines() if x.startswith("$"))[1:])


def config_of(command):
    given = next(word for word in command if word.startswith("--config=")).partition(":")[2]
    return parse_config(get_config(given).to_dict())


def test_the_projector_stage_is_the_published_one(root, places):
    command = command_of(dry_run(root, "pretrain_projector.sh", "--config.seed=3", **places))
    assert command[:6] == ["accelerate", "launch", "--num_processes", "8", "--num_machines", "1"]
    assert "--multi_gpu" in command and "--use_fsdp" not in command
    assert command[-1] == "--config.seed=3" and command[command.index("-m") + 1] == "codecvit"
    config = config_of(command)
    assert config.optim.rates() == {"vision_tower": 0, "projector": 1e-3, "language_model": 0}
    assert (config.batch_size, config.epochs, config.optim.weight_decay) == (256, 1.0, 0.0)
    assert (config.optim.schedule, config.optim.warmup) == ("cosine", 0.03)
    assert (config.model.template, config.model.encoder) == ("plain", places["ENCODER"])
    assert config.model.language_model == "Qwen/Qwen3-4B-Instruct-2507"


def test_instruction_tuning_is_the_published_one(root, places):
    command = command_of(dry_run(root, "sft.sh", **places))
    assert command[command.index("--fsdp_version") + 1] == "2"
    config = config_of(command)
    rates = {"vision_tower": 2e-6, "projector": 1e-5, "language_model": 1e-5}
    assert config.optim.rates() == rates
    assert (config.batch_size, config.optim.schedule, config.optim.warmup) == (128, "linear", 0)
    assert (config.init, config.lora.rank) == (places["INIT"], 0)


def test_lora_tuning(root, places):
    config = config_of(command_of(dry_run(root, "sft_lora.sh", **places)))
    assert config.optim.rates() == {"vision_tower": 0, "projector": 2e-5, "language_model": 2e-4}
    assert (config.lora.rank, config.lora.alpha, config.optim.warmup) == (128, 256.0, 0.03)


def test_one_process_and_several_machines(root, places):
    alone = command_of(dry_run(root, "sft_lora.sh", **places, GPUS="0"))
    assert alone[:3] == ["codecvit", "llava", "train"]
    several = {"NODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "10.0.0.1"}
    command = command_of(dry_run(root, "sft.sh", **places, **several))
    for flag, value in [
        ("--num_processes", "32"),
        ("--num_machines", "4"),
        ("--machine_rank", "2"),
        ("--main_process_ip", "10.0.0.1"),
    ]:
        assert command[command.index(flag) + 1] == value


@pytest.mark.parametrize(
    ("script", "changes", "message"),
    [
        ("pretrain_projector.sh", {"ENCODER": ""}, "ENCODER is not set"),
        ("pretrain_projector.sh", {"ENCODER": "/nowhere"}, "no folder of `codecvit export`"),
        ("pretrain_projector.sh", {"DATA": "gone.json"}, "DATA=gone.json does not exist"),
        ("sft.sh", {"INIT": "gone"}, "neither a run nor a model"),
        ("sft.sh", {"BATCH": "12"}, "multiple of 8 processes times MICRO=1"),
        ("sft.sh", {"NODES": "2"}, "needs MASTER_ADDR"),
        ("sft_lora.sh", {"FSDP": "2"}, "FSDP=2 must be 0 or 1"),
        ("sft_lora.sh", {"GPUS": "all"}, "GPUS=all must be a whole number"),
    ],
)
def test_what_is_missing_is_named(root, places, script, changes, message):
    done = dry_run(root, script, **{**places, **changes})
    assert done.returncode == 2 and message in done.stderr
