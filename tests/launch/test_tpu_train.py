"""train: made, synced, prepared, run; after a preemption all of that again, and the run goes on."""

from __future__ import annotations

import json
import sys

import pytest

from .cloud import tool

CREATE = ["--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base", "--spot"]
QUICK = ["--poll=0.2", "--grace=0.5"]

# Counts to $1 and keeps its count in the folder $2, which all workers see; SIGTERM makes it end
# well. Needs what sync and prepare bring.
COUNT = """#!/bin/bash
set -e
. ./prepared
trap 'echo "SIGTERM: saved step $step"; exit 0' TERM
echo "$ count --to=$1"
saved=$2/$JAX_PROCESS_ID
step=$(cat "$saved" 2>/dev/null || echo 0)
while [ "$step" -lt "$1" ]; do
  step=$((step + 1))
  echo "$step" > "$saved"
  echo "step $step: loss 1"
  sleep 0.03
done
echo "counted from here: $WHO"
"""


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    root.mkdir()
    (root / "count.sh").write_text(COUNT)
    (root / "setup.sh").write_text('echo "WHO=$*" > prepared')
    (tmp_path / "shared").mkdir()
    return root


def count(tmp_path, to: int) -> list[str]:
    return ["--", "bash", "count.sh", str(to), f"{tmp_path}/shared"]


def test_a_preempted_tpu_is_made_anew_and_the_run_goes_on(empty_cloud, tree, tmp_path, wait_until):
    cloud = empty_cloud
    flags = ["--resume-forever", "--yes", f"--dir={tree}", "--setup=DEVICE=cpu", *CREATE, *QUICK]
    process = cloud.start("train", *flags, *count(tmp_path, 60))
    saved = [tmp_path / "shared" / str(worker) for worker in (0, 1)]
    wait_until(lambda: all(p.exists() and p.read_text() > "2" for p in saved), 60)
    cloud.preempt(worker=1)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out
    told = [line for line in out.splitlines() if "TPU pod" in line or line.startswith("job on")]
    assert "there is no TPU pod: it is asked for" in told[0]
    assert "TPU pod is PREEMPTED: it is deleted and asked for again" in out
    assert out.count("[worker 1] 2 files in") == 2  # a new machine has nothing
    assert "job on pod: finished: finished on all workers" in out
    assert [path.read_text().strip() for path in saved] == ["60", "60"]
    verbs = [call[2:4] for call in cloud.calls() if call[3] in ("create", "delete")]
    assert verbs == [["queued-resources", verb] for verb in ("create", "delete", "create")]
    log = (cloud.home(0) / ".codecvit/jobs").glob("train-*/log")
    text = next(log).read_text()
    assert "counted from here: DEVICE=cpu" in text
    assert "step 1: " not in text  # it went on


@pytest.mark.slow
def test_ends_without_progress_are_counted_and_then_it_gives_up(cloud, tree):
    (tree / "bad.sh").write_text('echo "$ train"; echo "step 3: x"; exit 6')
    flags = ["--resume-forever", "--yes", f"--dir={tree}", "--give-up-after=2", *CREATE, *QUICK]
    out = cloud.call("train", *flags, "--", "bash", "bad.sh", code=6)
    assert out.count("failed: worker 0: exit status 6") == 3  # the first one got to step 3
    assert "given up: 2 ends in a row without progress beyond step 3 of command 1" in out
    assert not [call for call in cloud.calls() if "delete" in call]


FAILS = "failed"


@pytest.mark.parametrize(
    ("ends", "starts", "code"),
    [
        # progress of each end, which a preemption never counts against
        ([(FAILS, (1, 5)), (FAILS, (1, 5)), (FAILS, (1, 5)), ("finished", (1, 9))], 3, 7),
        ([(FAILS, (1, 5)), (FAILS, (1, 5)), (FAILS, (1, 6)), (FAILS, (1, 6))], 4, 0),
        ([(FAILS, (1, 9)), (FAILS, (1, 9)), (FAILS, (2, 1)), (FAILS, (2, 1))], 4, 0),
        ([("preempted", (1, 5))] * 5, 5, 0),
        ([("interrupted", (1, 5)), ("interrupted", (1, 4)), ("interrupted", (1, 5))], 3, 7),
        ([(FAILS, (0, -1)), (FAILS, (0, -1))], 2, 7),
        ([("stopped", (1, 5))], 1, 7),
    ],
)
def test_only_ends_without_progress_use_up_the_tries(ends, starts, code, monkeypatch, capsys):
    resume, jobs = tool().resume, tool().jobs
    left = [*ends, ("finished", (9, 9))]
    monkeypatch.setattr(
        resume,
        "_once",
        lambda *_: (lambda end: jobs.Outcome(end[0], 7, "why", end[1]))(left.pop(0)),
    )
    plan = resume.Training(["x"], None, "x", 1, None, "j", None, True, 2, 0, 0, 1)
    pod = resume.Pod("pod", "z", "p")
    assert resume.train(resume.Runner(), pod, plan) == code
    assert len(ends) + 1 - len(left) == starts + (code == 0)
    assert ("given up: 2 ends in a row" in capsys.readouterr().out) == (
        code != 0 and ends[0][0] != "stopped"
    )


@pytest.mark.slow
def test_a_killed_job_is_not_started_again(cloud, tree, tmp_path, wait_until):
    flags = ["--resume-forever", "--yes", f"--dir={tree}", *CREATE, *QUICK]
    process = cloud.start("train", *flags, *count(tmp_path, 9999))
    wait_until(lambda: (tmp_path / "shared/1").exists(), 60)
    cloud.call("kill", "--yes")
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 143
    assert "job on pod: stopped: worker 0: stopped" in out


@pytest.mark.slow
def test_train_again_watches_what_runs_already(cloud, tree, tmp_path, wait_until):
    """The laptop was shut: the job went on, and the next call finds it."""
    script = (
        f"touch {tmp_path}/shared/$JAX_PROCESS_ID; until test -f {tmp_path}/go; do sleep 0.1; done"
    )
    flags = [f"--dir={tree}", *QUICK, "--", "bash", "-c", script]
    first = cloud.start("train", *flags)
    wait_until(lambda: len(list((tmp_path / "shared").iterdir())) == 2, 60)
    first.kill()
    first.communicate()
    second = cloud.start("train", *flags)
    told = second.stdout.readline()
    assert "is running there already: watching it" in told
    (tmp_path / "go").touch()
    out = second.communicate(timeout=60)[0]
    assert second.returncode == 0
    assert "files in" not in out
    assert "finished on all workers" in out


@pytest.mark.slow
def test_without_resume_forever_it_runs_once(cloud, tree):
    out = cloud.call("train", f"--dir={tree}", *QUICK, "--no-prepare", "--", "false", code=1)
    assert out.count("job on pod: failed: worker 0: exit status 1") == 1
    assert not (cloud.home(0) / "codecvit/prepared").exists()
    cloud.make("gone", state="PREEMPTED")
    out = cloud.call("train", "--tpu=gone", f"--dir={tree}", *QUICK, "--", "true", code=1)
    assert "gone is PREEMPTED; --accelerator-type would make a new one" in out


def test_deleting_is_asked_for_before_anything_starts(cloud, tree):
    flags = ["--resume-forever", f"--dir={tree}", *CREATE, *QUICK, "--", "true"]
    out = cloud.call("train", *flags, answer="n\n", code=1)
    assert "delete pod, and make it anew, whenever it is preempted? [y/N]" in out
    assert not cloud.calls()


def test_a_queued_resource_with_another_tpu_in_it_is_left_alone(cloud, tree):
    cloud.make("pod", state="READY")
    known = cloud.read()
    known["nodes"]["pod"]["state"] = "PREEMPTED"
    flags = {"--node-id": "somebodys", "--zone": "zone-a", "--project": "proj"}
    cloud.write(nodes=known["nodes"], queued={"pod": {"state": "SUSPENDED", "flags": flags}})
    args = ["--resume-forever", "--yes", f"--dir={tree}", *CREATE, *QUICK, "--", "true"]
    out = cloud.call("train", *args, code=1)
    assert "holds ['somebodys'], not the TPU pod: left alone" in out
    assert not [call for call in cloud.calls() if "delete" in call]


class Script:
    """A runner to whom gcloud gives these states, one after the other, of node and queue."""

    dry_run = False

    def __init__(self, *states: tuple[str, str]) -> None:
        self.states, self.done = list(states), []

    def say(self, text: str) -> None:
        pass

    def ask(self, argv: list[str]):
        nodes, result = tool().nodes, sys.modules["tpu_pod.gcloud"].Result
        node, queue = self.states[0]
        state = node if "tpu-vm" in argv else queue
        if "tpu-vm" not in argv and len(self.states) > 1:  # it is asked for last
            self.states.pop(0)
        if state == nodes.ABSENT:
            return result(1, err="ERROR: (gcloud) NOT_FOUND: Resource")
        told = {"state": state, "networkEndpoints": [{"ipAddress": "10.0.0.1"}]}
        if "tpu-vm" not in argv:
            told = {"state": {"state": state}, "tpu": {"nodeSpec": [{"nodeId": "pod"}]}}
        return result(0, out=json.dumps(told))

    def do(self, argv: list[str]):
        self.done.append(argv[4])
        return sys.modules["tpu_pod.gcloud"].Result(0)


NONE = "ABSENT"
FAILED = [(NONE, "FAILED"), (NONE, "FAILED"), (NONE, NONE)]  # looked at, deleted, gone


@pytest.mark.parametrize(
    ("states", "done"),
    [
        ([("READY", "ACTIVE")], []),
        ([(NONE, NONE), (NONE, "CREATING"), (NONE, "PROVISIONING"), ("READY", "-")], ["create"]),
        ([("STARTING", "ACTIVE"), ("READY", "-")], []),
        ([("PREEMPTED", NONE), (NONE, NONE), (NONE, NONE), ("READY", "-")], ["delete", "create"]),
        (
            [(NONE, "SUSPENDED"), (NONE, "SUSPENDED"), (NONE, NONE), ("READY", "-")],
            ["delete", "create"],
        ),
        ([*FAILED, *FAILED, ("READY", "-")], ["delete", "create"] * 2),
        ([("STOPPED", "ACTIVE")], "STOPPED, its queued resource ACTIVE: this does not pass"),
        (FAILED * 6, "FAILED 5 times"),
    ],
)
def test_each_state_of_a_tpu_is_answered(states, done):
    nodes, resume = tool().nodes, tool().resume
    runner, pod = Script(*states), resume.Pod("pod", "z", "p")
    request = nodes.Request("v4-16", "version")
    if isinstance(done, str):
        with pytest.raises(resume.PodError, match=done):
            nodes.ensure(runner, pod, request, poll=0)
    else:
        assert nodes.ensure(runner, pod, request, poll=0).addresses == ("10.0.0.1",)
        assert runner.done == done
