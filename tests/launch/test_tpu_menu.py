"""tpu_command.sh as people use it: the menu, on a terminal and from a file; sourced; picking."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time


def menu(cloud, answers: str, **env: str) -> str:
    """Sources the script in bash and types `tpu`."""
    command = ["bash", "-c", '. "$1" && echo sourced && tpu', "bash", "./tpu_command.sh"]
    done = subprocess.run(
        command, input=answers, env=cloud.env | env, cwd=cloud.root, capture_output=True, text=True
    )
    return done.stdout + done.stderr


TPU = {"TPU_NAME": "pod", "ZONE": "zone-a", "PROJECT_ID": "proj"}


def test_every_entry_of_the_menu_does_what_it_says(jobs, tmp_path):
    """One sitting: each entry by its number, twice by its name."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/setup.sh").write_text('echo "set up for $*"')
    answers = [
        "2", f"{tmp_path}/tree",  # sync dir
        "3", "DEVICE=cpu",  # prepare env
        "run", "bash -c 'echo running; sleep 300'",
        "5",  # status
        "6", "1",  # logs
        "check",
        "nothing",
        "8", "", "y",  # kill job
        "9", "n",  # clear TPU logs
        "1", "1",  # ssh
        "exit",
    ]  # fmt: skip
    out = menu(jobs, "\n".join(answers) + "\n", **TPU)
    assert out.startswith("sourced\n")
    for words in (
        "1 files, 0.0 MB",
        "[worker 1] set up for DEVICE=cpu",
        " running",
        "[worker 0] running",
        "[worker 0] jobs running: job-",
        "'nothing' is none of 1 to 10",
        "is stopped",
        "remove libtpu's logs on 2 workers of pod? [y/N] nothing done",
    ):
        assert words in out, words
    shell = ["ssh", "pod", "--zone=zone-a", "--project=proj", "--worker=1"]
    assert jobs.calls()[-1][3:] == shell
    titles = ["ssh", "sync dir", "prepare env", "run", "status", "logs", "check", "kill job"]
    for number, title in enumerate([*titles, "clear TPU logs", "exit"], 1):
        assert f"{number:3}  {title}\n" in out


def test_project_zone_and_tpu_are_picked_from_lists(jobs):
    jobs.make("other", state="CREATING")
    out = menu(jobs, "status\n\n1\n2\nexit\n")
    assert "project [configured-project]: " in out
    assert "there is no TPU in zone-a of configured-project" in out
    out = menu(jobs, "status\nproj\n1\n2\ncheck\n10\n")
    assert "  1  zone-a\n  2  zone-b\nzone, by number or name: " in out
    assert "  1  other  CREATING\n  2  pod  READY\n" in out
    assert "TPU pod: READY v4-16" in out
    assert out.count("by number or name") == 2  # it remembers them
    assert "'zone-x' is no zone of the list" in menu(jobs, "status\nproj\nzone-x\n")


def test_the_menu_on_a_terminal(jobs):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        ["./tpu_command.sh"], cwd=jobs.root, env=jobs.env | TPU,
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    seen = ""

    def read_until(words: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 20
        while words not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([leader], [], [], 0.1)[0]:
                seen += os.read(leader, 4096).decode()

    read_until("choose: ")
    os.write(leader, b"7\n")
    read_until("[worker 1] jobs running: none")
    read_until("choose: ")
    os.write(leader, b"exit\n")
    assert process.wait(20) == 0
    os.close(leader)


def test_without_a_terminal_nothing_is_asked(jobs):
    done = subprocess.run(
        ["./tpu_command.sh", "status"], env=jobs.env, cwd=jobs.root, stdin=subprocess.DEVNULL,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--tpu is not given, and there is no terminal to ask on" in done.stderr
    assert not jobs.calls()


def test_the_parts_parse_on_python_3_10(root):
    import ast

    files = [root / "scripts/tpu_command.py", *(root / "scripts/tpu_pod").glob("*.py")]
    assert len(files) == 9
    for file in files:
        ast.parse(file.read_text(), feature_version=(3, 10))
