"""scripts/pretrain/train.sh and what it shares with scripts/contrastive/train.sh."""

from __future__ import annotations

import importlib.util
import signal
import sys
import time
from pathlib import Path

import pytest

from codecvit.configs import stage1_images, stage2_video
from codecvit.files import write_atomic
from codecvit.trainers.pretrain_config import PretrainConfig

TRAIN = "scripts/pretrain/train.sh"
PAIRS = "scripts/contrastive/train.sh"
BASE = {"EXP_PATH": "/runs", "RECORDS": "/records"}
PAIRS_BASE = {"EXP_PATH": "/runs", "DATACOMP_PATH": "/pairs", "VOCAB_PATH": "v.txt"}


def config_of(command):
    """(the configuration that a command asks for, its work directory)."""
    name, _, arguments = command[2].removeprefix("--config=src/configs/").partition(".py:")
    module = {"stage1_images": stage1_images, "stage2_video": stage2_video}[name]
    config = PretrainConfig.from_dict(module.get_config(arguments).to_dict())
    return config, command[3].removeprefix("--workdir=")


def test_three_stages_each_from_the_one_before(shell):
    stages = [config_of(c) for c in shell.commands("bash", TRAIN, **BASE)]
    assert [workdir for _, workdir in stages] == [
        f"/runs/L-14/{stage}" for stage in ("224", "448", "video")
    ]
    assert [config.init.checkpoint for config, _ in stages] == [
        "",
        "/runs/L-14/224",
        "/runs/L-14/448",
    ]
    one, two, video = (config for config, _ in stages)
    assert (one.sources["images"].image_size, two.sources["images"].image_size) == (224, 448)
    assert one.sources["images"].records == "/records/image"
    assert video.sources["collage"].records == "/records/collage"
    assert {name: head.num_classes for name, head in video.heads.items()} == {
        "images": 2_000_000,
        "ocr": 365_187,
        "video": 400_000,
    }


def test_every_variable_has_its_effect(shell):
    plain = shell.commands("bash", TRAIN, **BASE)
    others = {
        "EXP_PATH": "/x", "RECORDS": "gs://b/r", "VARIANT": "H/14", "STAGES": "224,448",
        "INIT": "/run", "IMAGE_CLASSES": "7", "OCR_CLASSES": "7", "VIDEO_CLASSES": "7",
        "FSDP": "8", "ACCUMULATE": "2", "VIDEO_ACCUMULATE": "2", "LOCAL_DATA": "/disk",
        "LOCAL": "1",
    }  # fmt: skip
    for name, value in others.items():
        assert shell.commands("bash", TRAIN, **{**BASE, name: value}) != plain, name
    assert shell.commands("bash", TRAIN, "--config.seed=3", **BASE)[1][-1] == "--config.seed=3"
    config, _ = config_of(shell.commands("bash", TRAIN, **BASE, FSDP="8", ACCUMULATE="2")[0])
    assert (config.mesh.fsdp, config.grad_accum_steps) == (8, 2)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RECORDS": ""}, "RECORDS is not set"),
        ({"VARIANT": "S/14"}, "VARIANT=S/14 must be B/14, L/14 or H/14"),
        ({"STAGES": "224,video"}, "STAGES=224,video must be neighbours"),
        ({"VARIANT": "B/14", "STAGES": "448,video", "INIT": "/r"}, "no published recipe for video"),
        ({"STAGES": "448"}, "STAGES=448 needs INIT"),
        ({"FSDP": "all"}, "FSDP=all must be a whole number"),
        ({"RECORDS": "/a,b"}, "RECORDS=/a,b must not hold a comma"),
        ({"EXP_PATH": "s3://bucket/runs"}, "EXP_PATH=s3://bucket/runs must be a folder that all"),
        ({"DRY_RUN": "yes"}, "DRY_RUN=yes must be 0 or 1"),
        ({"TPU_NAME": "t"}, "TPU_NAME=t needs ZONE and PROJECT_ID"),
        ({"ZONE": "z"}, "ZONE and PROJECT_ID go with TPU_NAME"),
        ({"LOCAL_DATA_GB": "5"}, "LOCAL_DATA_GB goes with LOCAL_DATA"),
        ({"LOCAL_DATA": "/d", "LOCAL_DATA_GB": "much"}, "LOCAL_DATA_GB=much must be a whole"),
    ],
)
def test_wrong_values_are_refused_by_name(shell, variables, message):
    status, output = shell.run("bash", TRAIN, **{"DRY_RUN": "1", **BASE, **variables})
    assert status == 2
    assert message in output


@pytest.mark.parametrize(("script", "base"), [(TRAIN, BASE), (PAIRS, PAIRS_BASE)])
def test_a_pod_gets_the_same_command_with_every_word_as_it_was(shell, hostile, script, base):
    pod = {"TPU_NAME": hostile, "ZONE": "z one", "PROJECT_ID": "p"}
    base = {**base, "EXP_PATH": f"/runs/{hostile}", "LOCAL_DATA": "/mnt/disk"}
    (command,) = shell.commands("bash", script, **base, **pod)
    at = command.index("--")
    where = ["--tpu", hostile, "--zone", "z one", "--project", "p", "--wait"]
    assert command[:at] == ["./tpu_command.sh", "run", *where]
    assert command[at + 1] == "env" and command[-2:] == ["bash", script]
    forwarded = dict(word.split("=", 1) for word in command[at + 2 : -2])
    assert forwarded.items() >= base.items()
    assert not forwarded.keys() & {"TPU_NAME", "ZONE", "PROJECT_ID", "DRY_RUN"}
    # There it prints what it would have printed here.
    without = {**base, **forwarded}
    assert shell.commands("bash", script, **without) == shell.commands("bash", script, **base)
    assert not (shell.root / "hacked").exists()


def test_names_of_any_kind_reach_the_trainer(shell, hostile):
    records = shell.place / hostile
    for name in ("image", "codec", "frames", "collage", "ocr"):
        (records / name).mkdir(parents=True)
        (records / name / "manifest.json").touch()
    shell.script("codecvit", 'printf "%s\\n" "$2" "$3" >> "$STAND_IN_DIR/called"; exit 3')
    status, output = shell.run("bash", TRAIN, RECORDS=str(records), EXP_PATH=f"/r/{hostile}")
    assert status == 3, output
    config, workdir = (shell.place / "called").read_text().splitlines()
    assert f"records={records}/image," in config
    assert workdir == f"--workdir=/r/{hostile}/L-14/224"
    assert not (shell.root / "hacked").exists()


def test_a_record_set_of_a_later_stage_is_missed_at_once(shell):
    for name in ("image", "codec", "frames", "collage"):
        (shell.place / name).mkdir()
        (shell.place / name / "manifest.json").touch()
    shell.script("codecvit", "exit 3")
    here = {"RECORDS": str(shell.place), "EXP_PATH": str(shell.place / "runs")}
    status, output = shell.run("bash", TRAIN, **here)
    assert status == 2
    assert f"no finished record set (manifest.json) at {shell.place}/ocr" in output
    assert shell.run("bash", TRAIN, **here, STAGES="224,448")[0] == 3


# A trainer that saves and ends with status 0 when it is told to stop, as the real one does.
TRAINER = """
for word in "$@"; do case "$word" in --workdir=*) dir=${word#*=} ;; esac; done
mkdir -p "$dir/checkpoints"
echo '{"total_steps": 80}' > "$dir/config.json"
finish() { mkdir -p "$dir/checkpoints/$1/encoder"; touch "$dir/checkpoints/$1/encoder/d"; exit 0; }
trap 'finish 40' TERM
echo "${CODECVIT_CACHE:-} ${CODECVIT_CACHE_GB:-}" > "$STAND_IN_DIR/cache"
touch "$STAND_IN_DIR/started"
for ((i = 0; i < TENTHS; i++)); do sleep 0.1; done
finish 80
"""


@pytest.fixture
def trainer(shell):
    shell.script("codecvit", TRAINER)
    folder = shell.place / "records" / "image"
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()
    runs = shell.place / "runs"
    return {"RECORDS": str(folder.parent), "EXP_PATH": str(runs), "VARIANT": "B/14", "TENTHS": "0"}


def test_all_stages_run_to_the_end(shell, trainer):
    status, output = shell.run("bash", TRAIN, **trainer)
    assert status == 0, output
    assert f"done: {shell.place}/runs/B-14/448" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_script_saves_and_starts_no_other_stage(shell, trainer, number):
    process = shell.start("bash", TRAIN, **{**trainer, "TENTHS": "600"})
    deadline = time.monotonic() + 20
    while not (shell.place / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output
    assert "runs/B-14/224 stopped at step 40 of 80" in output
    assert not (shell.place / "runs" / "B-14" / "448").exists()
    assert shell.run("bash", TRAIN, **trainer)[0] == 0  # and goes on


def test_a_stage_that_another_host_stopped_is_not_taken_for_done(shell, trainer):
    shell.script("codecvit", TRAINER.replace("finish 80", "finish 30"))
    status, output = shell.run("bash", TRAIN, **trainer)
    assert status == 75
    assert "448" not in output.partition("stopped at step 30 of 80")[2]


def test_copies_on_a_local_disk(shell, trainer):
    disk = {"LOCAL_DATA": str(shell.place), "LOCAL_DATA_GB": "1"}
    status, output = shell.run("bash", TRAIN, **trainer, **disk)
    assert status == 0, output
    assert f"records=file://{shell.place}/records/image\\," in output
    assert (shell.place / "cache").read_text() == f"{shell.place}/codecvit 1\n"
    assert shell.run("bash", TRAIN, **trainer, LOCAL_DATA=str(shell.place))[0] == 0
    assert int((shell.place / "cache").read_text().split()[1]) > 0
    for wrong, message in [
        ({"LOCAL_DATA": "/nowhere"}, "LOCAL_DATA=/nowhere is no folder"),
        ({**disk, "LOCAL_DATA_GB": "9999999"}, "LOCAL_DATA_GB=9999999 does not fit"),
    ]:
        status, output = shell.run("bash", TRAIN, **trainer, **wrong)
        assert status == 2 and message in output


def test_compiled_steps_are_kept_with_the_runs(shell, trainer):
    """In a folder that every process sees, unless the user names one; a bucket can't hold them."""
    runs = trainer["EXP_PATH"]
    for variables, folder in [
        ({}, f"{runs}/compile_cache"),
        ({"JAX_COMPILATION_CACHE_DIR": "/mine"}, "/mine"),
        ({"EXP_PATH": "gs://bucket/runs"}, ""),
    ]:
        shell.script(
            "codecvit", 'echo "${JAX_COMPILATION_CACHE_DIR:-}" > "$STAND_IN_DIR/kept"; exit 3'
        )
        assert shell.run("bash", TRAIN, **{**trainer, **variables})[0] == 3
        assert (shell.place / "kept").read_text() == f"{folder}\n"


def test_a_single_run_by_itself(shell, trainer):
    command = ["bash", "scripts/run_to_end.sh", "codecvit", "train"]
    assert shell.run(*command, f"--workdir={shell.place}/one", TENTHS="0")[0] == 0
    status, output = shell.run(*command, TENTHS="0")
    assert status == 2 and "no --workdir" in output
    done = shell.run(sys.executable, "scripts/stage_done.py", shell.place / "nothing")
    assert done[0] == 2 and "config.json" in done[1]


def test_the_end_of_a_run_is_seen_in_a_bucket_too():
    """A checkpoint that is still being written has its name there, and no commit file."""
    name = Path(__file__).parents[2] / "scripts" / "stage_done.py"
    spec = importlib.util.spec_from_file_location("stage_done", name)
    stage_done = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stage_done)
    write_atomic("memory://run/config.json", b'{"total_steps": 80}')
    assert stage_done.steps_of("memory://run") == (0, 80)
    write_atomic("memory://run/checkpoints/40/encoder/d", b"")
    write_atomic("memory://run/checkpoints/40/commit_success.txt", b"")
    write_atomic("memory://run/checkpoints/80/encoder/d", b"")
    assert stage_done.steps_of("memory://run") == (40, 80)
    assert stage_done.main(["memory://run"]) == 75
    write_atomic("memory://run/checkpoints/80/commit_success.txt", b"")
    assert stage_done.main(["memory://run"]) == 0
    assert stage_done.main(["memory://none"]) == stage_done.main(["none://x"]) == 2
