"""Scripts of published recipes: the commands that they launch, and what they refuse."""

from __future__ import annotations

import pytest

from codecvit.configs.llava import get_config
from codecvit.llava.training.config import parse_config

from .test_train_scripts import command_of, config_of, dry_run


@pytest.fixture
def files(tmp_path):
    for name in ("rows.json", "captions.json", "video.pt", "image.safetensors"):
        (tmp_path / name).write_text("[]")
    names = {"DATA": "rows.json", "CAPTIONS": "captions.json", "VIDEO": "video.pt"}
    return {name: str(tmp_path / path) for name, path in names.items()}


def commands_of(done):
    """The commands of a dry run."""
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("$")]
    return [command_of(type(done)(done.args, 0, line, "")) for line in lines]


def test_merv_frozen_is_launched_on_eight_gpus(root, files):
    (command,) = commands_of(dry_run(root, "merv_frozen.sh", "--config.optim.lr=1e-5", **files))
    assert command[command.index("--fsdp_transformer_layer_cls_to_wrap") + 1] == "LlamaDecoderLayer"
    config = config_of(command)
    assert config == parse_config(
        get_config(f"preset=merv-frozen,data={files['DATA']},seed=7").to_dict()
    )
    assert "--workdir=runs/llava/merv-frozen" in command and command[-1].endswith("lr=1e-5")
    towers = {"PRESET": "vivit-single", "TOWERS": "vivit=my folder"}
    (command,) = commands_of(dry_run(root, "merv_frozen.sh", **files, **towers))
    assert config_of(command).model.encoders == ("vivit=vivit:my folder@32",)


def test_merv_full_is_two_stages(root, files):
    first, second = commands_of(dry_run(root, "merv_full.sh", **files))
    assert config_of(first).data.recipe == files["CAPTIONS"]
    assert "--workdir=runs/llava/merv-full/captions" in first
    assert (config_of(first).batch_size, config_of(second).batch_size) == (256, 128)
    assert config_of(second).init == "runs/llava/merv-full/captions"
    assert config_of(second).data.recipe == files["DATA"]
    for stage, wanted in (("captions", first), ("instructions", second)):
        assert commands_of(dry_run(root, "merv_full.sh", **files, STAGE=stage)) == [wanted]


def test_videogpt_plus_is_three_stages(root, files, tmp_path):
    image, video, lora = commands_of(dry_run(root, "videogpt_plus.sh", **files, POOL_LEVEL="4"))
    assert config_of(image).model.encoders[0].startswith("image=clip:openai/")
    assert config_of(video).model.encoders == (f"video=internvideo2:{files['VIDEO']}@16",)
    runs = "runs/llava/videogpt-plus"
    assert f"--workdir={runs}/image" in image and f"--workdir={runs}/video" in video
    assert f"--init-projector=image={runs}/image,video={runs}/video" in lora
    assert config_of(lora).model.pool_level == 4 and len(config_of(lora).model.encoders) == 2
    given = f"image={tmp_path}/image.safetensors,video={tmp_path}/video.pt"
    named = {"STAGE": "lora", "INIT_PROJECTOR": given}
    (command,) = commands_of(dry_run(root, "videogpt_plus.sh", **files, **named))
    assert f"--init-projector={given}" in command


@pytest.mark.parametrize(
    ("script", "changes", "message"),
    [
        ("merv_frozen.sh", {"PRESET": "merv-full"}, "PRESET=merv-full must be"),
        ("merv_frozen.sh", {"DATA": ""}, "DATA is not set"),
        ("merv_full.sh", {"CAPTIONS": ""}, "CAPTIONS is not set"),
        ("merv_full.sh", {"STAGE": "2"}, "STAGE=2 must be all"),
        ("merv_full.sh", {"MICRO": "7"}, "multiple of 8 processes times MICRO=7"),
        ("videogpt_plus.sh", {"VIDEO": "gone.pt"}, "VIDEO=gone.pt is no file"),
        ("videogpt_plus.sh", {"POOL_LEVEL": "0"}, "POOL_LEVEL=0 must be"),
        ("videogpt_plus.sh", {"STAGE": "sft"}, "STAGE=sft must be all"),
        ("videogpt_plus.sh", {"INIT_PROJECTOR": "image=gone"}, "gone does not exist"),
    ],
)
def test_what_scripts_refuse(root, files, script, changes, message):
    done = dry_run(root, script, **{**files, **changes})
    assert done.returncode == 2 and message in done.stderr
