"""Jobs on the workers: their ends and failures are named, and kill leaves others alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from .cloud import tool

LOOK = ["--wait", "--poll=0.2"]
SLEEP = ["--", "bash", "-c", "echo begun; exec -a training sleep 300"]


def test_run_waits_and_returns_the_first_failure_by_name(jobs):
    script = 'echo "I am $JAX_PROCESS_ID of $JAX_NUM_PROCESSES"; exit $((JAX_PROCESS_ID * 7))'
    out = jobs.call("run", *LOOK, "--job=j", "--", "bash", "-c", script, code=7)
    assert "[worker 0] I am 0 of 2" in out
    assert out.endswith("job j: failed: worker 1: exit status 7\n")
    told = jobs.call("status", "--job=j").splitlines()
    assert [line.split()[:4] for line in told[2:]] == [
        ["0", "j", "exited", "0"],
        ["1", "j", "exited", "7"],
    ]
    assert "[worker 1] I am 1 of 2" in jobs.call("logs", "--lines=1")


def test_a_job_needs_no_connection(jobs):
    """The connection that started it is gone; a process that was tied to it would be too."""
    jobs.call("run", "--job=j", *SLEEP)
    for worker in (0, 1):
        pids = jobs.processes(worker)
        assert pids
        assert os.getpgid(pids[0]) != os.getpgid(0)
        for pid in pids:
            assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"  # noqa: PTH115
    assert jobs.call("status").count("running") == 2


def test_one_failing_worker_does_not_leave_the_others_waiting(jobs):
    script = 'test $JAX_PROCESS_ID = 1 && exit 9; echo "waiting for the others"; sleep 300'
    out = jobs.call("run", *LOOK, "--grace=0.2", "--", "bash", "-c", script, code=9)
    assert "worker 1 has ended; stopping the job on worker 0" in out
    assert "failed: worker 1: exit status 9" in out
    assert not jobs.processes(0)


def test_a_failed_worker_is_tried_again_and_named(jobs):
    jobs.fail("ssh", worker=1, times=2)
    out = jobs.call("run", "--job=a", "--", "true")
    assert out.count("[worker 1] starting failed (ERROR: [/usr/bin/ssh] exited") == 2
    assert "[worker 0] starting failed" not in out
    jobs.fail("ssh", worker=1, times=9)
    out = jobs.call("run", "--job=b", *SLEEP, code=1)
    assert "starting job b failed on 1 of 2 workers\nworker 1: ERROR" in out
    assert "[worker 0] job b is stopped" in out
    assert not jobs.processes(0)


def test_starting_again_after_a_lost_answer_does_not_start_twice(jobs):
    start = "bash .codecvit/worker.sh start --job=j --dir=./codecvit --token=%s -- sleep 300"
    assert "job j runs" in jobs.call("ssh", "--worker=0", "--", start % "t1")
    assert "was started already" in jobs.call("ssh", "--worker=0", "--", start % "t1")
    assert "there is a job j already" in jobs.call("ssh", "--worker=0", "--", start % "t2", code=1)
    other = (start % "t3").replace("--job=j", "--job=k")
    assert "job j is running here" in jobs.call("ssh", "--worker=0", "--", other, code=1)
    assert len(jobs.processes(0)) == 2  # the job's shell, and sleep


def test_kill_ends_its_own_processes_and_no_others(jobs, wait_until):
    """A bystander of the same name on the same worker, and a job's child in a group of its own."""
    env = {"HOME": str(jobs.home(0)), "STAND_IN_WORKER": str(jobs.home(0)), "PATH": "/usr/bin:/bin"}
    bystander = subprocess.Popen(
        ["bash", "-c", "exec -a training sleep 300"], env=env, start_new_session=True
    )
    child = "set -m; exec -a training sleep 300 & trap '' TERM; echo begun; wait; wait; sleep 300"
    jobs.call("run", "--job=j", "--", "bash", "-c", child)
    wait_until(lambda: len(jobs.processes(0)) == 4)
    assert "nobody to ask: pass --yes" in jobs.call("kill", code=1)
    assert "nothing done" in jobs.call("kill", answer="n\n", code=1)
    assert len(jobs.processes(0)) == 4
    out = jobs.call("kill", "--grace=0.4", answer="y\n")
    assert "end the job that was started last on 2 workers of pod? [y/N]" in out
    assert "[worker 1] job j is stopped, some of it by force" in out
    assert jobs.processes(0) == [bystander.pid]
    assert bystander.poll() is None
    assert "[worker 0] job j is not running (stopped)" in jobs.call("kill", "--yes", "--job=j")
    bystander.kill()
    bystander.wait()


def test_a_process_id_that_was_given_away_is_left_alone(jobs):
    """After a restart of the machine, or of the counter, the recorded id may be anybody's."""
    jobs.shrink()
    jobs.call("run", "--job=j", *SLEEP)
    pids = jobs.processes(0)
    record = jobs.home(0) / ".codecvit/jobs/j/record"
    true = record.read_text()
    for wrong in ("boot=another\n", "start=1\ntoken=another\n"):
        changed = {**dict(line.split("=") for line in true.split()), **dict(
            line.split("=") for line in wrong.split()
        )}  # fmt: skip
        record.write_text("".join(f"{key}={value}\n" for key, value in changed.items()))
        out = jobs.call("kill", "--yes", "--grace=1")
        assert "[worker 0] job j is not running (lost)" in out
        assert jobs.processes(0) == pids
    record.write_text(true)
    jobs.call("kill", "--yes", "--grace=1")
    assert not jobs.processes(0)


@pytest.mark.parametrize(
    ("sign", "word"),
    [
        (signal.SIGTERM, "interrupted, 0"),
        pytest.param(signal.SIGKILL, "lost", marks=pytest.mark.slow),
    ],
)
def test_a_job_that_something_else_ended_is_not_a_success(jobs, wait_until, sign, word):
    """A trainer that SIGTERM ends saves and exits 0, which is no end of the training."""
    script = "trap 'exit 0' TERM; echo begun; while :; do sleep 0.05; done"
    process = jobs.start("run", *LOOK, "--grace=0.2", "--job=j", "--", "bash", "-c", script)
    logs = [jobs.home(worker) / ".codecvit/jobs/j/log" for worker in (0, 1)]
    wait_until(lambda: all(log.exists() and log.read_text() for log in logs), 60)
    for pid in jobs.processes(1):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)
    out = process.communicate()[0]
    assert process.returncode == 143, out
    assert f"interrupted: worker 1: {word}\n" in out


def test_logs_of_all_workers_are_gathered(jobs, tmp_path):
    jobs.call("run", *LOOK, "--", "bash", "-c", "for i in 1 2 3; do echo line $i; done")
    out = jobs.call("logs", "--lines=2")
    assert sorted(out.splitlines()) == [f"[worker {w}] line {i}" for w in (0, 1) for i in (2, 3)]
    jobs.call("logs", "--lines=0", f"--out={tmp_path}/logs")
    for worker in (0, 1):
        text = (tmp_path / f"logs/worker-{worker}.log").read_text()
        assert text == "line 1\nline 2\nline 3\n"


def test_what_was_never_there_is_told_with_a_remedy(cloud):
    assert "no code there yet? ./tpu_command.sh sync" in cloud.call("run", "--", "true", code=1)
    cloud.install()
    (cloud.home(1) / "codecvit/here").unlink()
    (cloud.home(1) / "codecvit").rmdir()
    out = cloud.call("run", "--", "true", code=1)
    assert "worker 1: worker.sh: there is no folder ./codecvit here: sync first" in out
    assert "trying again" not in out
    assert "no job was started here" in cloud.call("logs", "--worker=1", code=1)


def test_the_environment_of_setup_is_used(jobs):
    jobs.install(
        ("setup.sh", 'mkdir -p .venv/bin; echo "export WHERE=$1" > .venv/bin/activate; echo "$*"')
    )
    out = jobs.call("prepare", "--", "DEVICE=cpu", "EXTRAS=a b")
    assert "[worker 1] DEVICE=cpu EXTRAS=a b" in out
    assert "[worker 0] DEVICE=cpu" in jobs.call("run", *LOOK, "--", "bash", "-c", "echo $WHERE")
    jobs.install(("setup.sh", "test -f tried || { touch tried; exit 5; }; echo $1"))
    out = jobs.call("prepare")
    assert "[worker 1] setup.sh failed (exit status 5); trying again" in out
    assert "[worker 1] DEVICE=tpu" in out


def test_check_names_who_holds_an_accelerator(jobs):
    for worker in (0, 1):
        (jobs.home(worker) / "accel0").touch()
    with (jobs.home(0) / "accel0").open():
        jobs.call("run", "--job=j", "--", "bash", "-c", "exec sleep 300 < $HOME/accel0")
        out = jobs.call("check")
    mine = f"[worker 0] {jobs.home(0)}/accel0 is held by process {os.getpid()} ("
    lines = [line for line in out.splitlines() if line.startswith(mine)]
    assert len(lines) == 1 and lines[0].endswith("which leaves it alone")
    assert out.count("): job j\n") == 2
    assert out.count("jobs running: j\n") == 2


def test_clear_logs_removes_libtpus_files_only(jobs):
    jobs.shrink()
    logs = jobs.home(0) / "tpu_logs"
    for name in ("tpu_driver.INFO", "tpu_driver.host.me.log.INFO.1", "notes.txt"):
        (logs / name).touch()
    jobs.call("run", "--job=j", *SLEEP)
    assert "job j is running here" in jobs.call("clear-logs", "--yes", code=1)
    jobs.call("kill", "--yes", "--grace=1")
    assert "nothing done" in jobs.call("clear-logs", answer="\n", code=1)
    assert "[worker 0] removed 2 files" in jobs.call("clear-logs", answer="y\n")
    assert [path.name for path in logs.iterdir()] == ["notes.txt"]


def test_exit_status_75_asks_to_be_started_again(jobs):
    """What scripts/pretrain/train.sh says after a signal, on hosts that did not get it as well."""
    out = jobs.call("run", *LOOK, "--", "bash", "-c", "exit 75", code=75)
    assert "interrupted: worker 0: exit status 75" in out


def test_a_command_that_hangs_is_a_failure():
    hang = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    result = tool().Runner()._run(hang, 0, None, False, timeout=0.2)
    assert result.code != 0 and result.reason == "no end within 0.2 s"


def test_a_job_that_ends_while_it_is_looked_at_is_not_lost(jobs):
    """`ps`, which worker.sh asks for the processes, is where this job ends."""
    jobs.shrink()
    jobs.call("run", "--job=j", *SLEEP)
    job, bin_folder = jobs.home(0) / ".codecvit/jobs/j", jobs.home(0) / "bin"
    bin_folder.mkdir()
    (bin_folder / "ps").write_text(f"#!/bin/sh\necho 7 > {job}/code\n")
    (bin_folder / "ps").chmod(0o755)
    jobs.write(env={"PATH": f"{bin_folder}:/usr/bin:/bin"})
    assert jobs.call("status").splitlines()[-1].split()[:4] == ["0", "j", "exited", "7"]
