"""The gcloud command lines, to the letter; gcloud's own reference knows all of them."""

from __future__ import annotations

import re
import shlex

import pytest

from .gcloud_stand_in import TABLE, Refused, check

AT = "--zone=zone-a --project=proj"
SSH = f"gcloud compute tpus tpu-vm ssh pod {AT} --worker=%d --quiet "
CREATE = (
    f"gcloud compute tpus queued-resources create pod {AT} --node-id=pod --accelerator-type=v4-16 "
    "--runtime-version=tpu-ubuntu2204-base --spot --quiet --network=mine"
)
CREATE_FLAGS = ["--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base", "--spot"]
CREATE_FLAGS += ["--create-flag=--network=mine"]
START = (
    "'--command=bash .codecvit/worker.sh start --job=j --token=TOKEN --dir=./codecvit "
    "--processes=2 --process=%d --coordinator=127.0.0.1:8482 -- bash '\"'\"'a b.sh'\"'\"''"
)
GOLDEN = {
    "ssh": (["--worker=1"], [f"gcloud compute tpus tpu-vm ssh pod {AT} --worker=1"]),
    "ssh --attach": (
        ["--internal-ip"],
        [
            f"gcloud compute tpus tpu-vm ssh pod {AT} --worker=0 --internal-ip -- "
            "'bash .codecvit/worker.sh log --follow --lines=100'"
        ],
    ),
    "ssh --worker=0": (["--", "nproc"], [SSH % 0 + "--command=nproc"]),
    "prepare --remote-dir=x": (
        ["--", "DEVICE=tpu", "EXTRAS=dev"],
        [SSH % w + "'--command=cd -- ./x && bash setup.sh DEVICE=tpu EXTRAS=dev'" for w in (0, 1)],
    ),
    "run --job=j": (
        ["--", "bash", "a b.sh"],
        [SSH % w + START % w for w in (0, 1)],
    ),
    "logs --worker=1": (
        ["--lines=7", "--job=j"],
        [SSH % 1 + "'--command=bash .codecvit/worker.sh log --lines=7 j'"],
    ),
    "check --worker=1": ([], [SSH % 1 + "'--command=bash .codecvit/worker.sh check'"]),
    "kill": (
        ["--grace=5"],
        [SSH % w + "'--command=bash .codecvit/worker.sh stop --grace=5'" for w in (0, 1)],
    ),
    "clear-logs": (
        [],
        [SSH % w + "'--command=bash .codecvit/worker.sh clear-logs'" for w in (0, 1)],
    ),
    "create": (CREATE_FLAGS, [CREATE]),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_dry_run_prints_the_exact_lines_and_runs_none(cloud, case):
    flags, lines = GOLDEN[case]
    out = cloud.call(*case.split(), "--dry-run", *flags)
    assert [line[2:] for line in out.splitlines() if line.startswith("$ ")] == lines
    assert {call[3] for call in cloud.calls()} <= {"describe"}
    for line in lines:
        check(shlex.split(line)[1:])


def test_dry_run_of_train_shows_the_whole_way(empty_cloud, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.sh").write_text("true")
    flags = ["--dry-run", "--resume-forever", f"--dir={tmp_path}/tree", *CREATE_FLAGS]
    out = empty_cloud.call("train", *flags, "--", "bash", "a.sh")
    lines = [line[2:] for line in out.splitlines() if line.startswith("$ ")]
    assert lines[0] == CREATE
    bundle = re.search(r"codecvit-sync-\w{12}\.tar\.gz", lines[1]).group()
    scp = f"gcloud compute tpus tpu-vm scp {bundle} pod: {AT} --worker=0 --quiet"
    assert lines[1] == scp
    assert f"tar -xzf {bundle} -C .codecvit worker.sh && bash" in lines[2]
    assert lines[3] == SSH % 0 + "'--command=cd -- ./codecvit && bash setup.sh DEVICE=tpu'"
    start = "bash .codecvit/worker.sh start --job=train-TIME --token=TOKEN --dir=./codecvit"
    assert lines[4] == SSH % 0 + f"'--command={start} -- bash a.sh'"
    for line in lines:
        check(shlex.split(line)[1:])
    assert {call[3] for call in empty_cloud.calls()} == {"describe"}
    assert not empty_cloud.read()["nodes"]


def test_the_stand_in_knows_only_what_gcloud_knows():
    ssh = ["compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert check([*ssh, "--zone", "z", "--worker=0", "--", "-t"])[2:] == (
        {"--zone": "z", "--worker": "0"},
        ["-t"],
    )
    for wrong in (
        [*ssh, "--workers=0"],
        [*ssh, "--tunnel-through-iap"],  # of the alpha track
        [*ssh, "--zone"],
        ["compute", "tpus", "tpu-vm", "start", "pod"],
        ["alpha", *ssh],
        ["auth", "login"],
    ):
        with pytest.raises(Refused):
            check(wrong)
    assert re.fullmatch(r"\d+\.\d+\.\d+", TABLE["sdk_version"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["status", "--spot"], "unrecognized arguments: --spot"),
        (["statuss"], "invalid choice: 'statuss'"),
        (["status", "--", "x"], "status takes no command behind --"),
        (["kill", "--wor=1"], "unrecognized arguments: --wor=1"),
        (["create"], "--accelerator-type is not given"),
        (["create", *CREATE_FLAGS, "--create-flag=x"], "must be a flag"),
        (["train", "--resume-forever", "--", "x"], "--resume-forever needs --accelerator-type"),
        (["train"], "put it behind --"),
        (["check", "--worker=2"], "pod has workers 0 to 1"),
    ],
)
def test_wrong_requests_are_named(cloud, args, words):
    assert words in cloud.call(*args, code=2)
    assert all(call[3] == "describe" for call in cloud.calls())


def test_what_is_not_there_or_not_ready_is_named(cloud):
    assert "TPU gone: ABSENT" in cloud.call("status", "--tpu=gone", code=1)
    assert "no TPU gone in zone-a of proj" in cloud.call("check", "--tpu=gone", code=1)
    cloud.make("late", state="CREATING")
    assert "TPU late is CREATING, not READY" in cloud.call("check", "--tpu=late", code=1)
    cloud.make("dead", state="PREEMPTED")
    assert "dead is PREEMPTED" in cloud.call("run", "--tpu=dead", "--", "true", code=1)


def test_create_asks_for_a_queued_resource_and_waits(empty_cloud):
    out = empty_cloud.call("create", "--wait", "--poll=0.05", *CREATE_FLAGS)
    assert "TPU pod is READY, 2 workers" in out
    assert empty_cloud.read()["queued"]["pod"]["flags"]["--network"] == "mine"
    again = empty_cloud.call("create", *CREATE_FLAGS, code=2)
    assert "queued resource pod already" in again
