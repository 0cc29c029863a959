"""Names and words with blanks, quotes, ;, $() and newlines arrive as they were, or are refused."""

from __future__ import annotations

import os
import subprocess

import pytest

HOSTILE = [
    "two words",
    " leading and  double blanks ",
    "it's",
    'say "hi"',
    "a;touch INJECTED",
    "$(touch INJECTED)",
    "`touch INJECTED`",
    "line one\nline two; touch INJECTED",
    "-leading-dash",
    "--worker=all",
    "--",
    "$HOME ~ * ? [a] {b} !c \\ | & > out < in #x",
    "",
    "é 日本",
]
# Writes its arguments and one variable, NUL between them, into its folder.
SAVE = 'printf "%s\\0" "$VALUE" "$@" > args'


def saved(folder) -> list[str]:
    return os.fsdecode((folder / "args").read_bytes()).split("\0")[:-1]


def test_the_words_of_a_command_arrive_as_they_were(jobs):
    value = "\n".join(HOSTILE)
    command = ["env", f"VALUE={value}", "bash", "-c", SAVE, "bash", *HOSTILE]
    jobs.call("run", "--wait", "--poll=0.2", "--", *command)
    for worker in (0, 1):
        assert saved(jobs.home(worker) / "codecvit") == [value, *HOSTILE]
    assert not list(jobs.folder.rglob("INJECTED"))


@pytest.mark.parametrize("name", [HOSTILE[5], HOSTILE[7], HOSTILE[8], HOSTILE[11]])
def test_a_remote_folder_of_any_name_is_one_folder(jobs, name):
    jobs.shrink()
    (jobs.home(0) / name).mkdir()
    jobs.call("run", f"--remote-dir={name}", "--job=j", "--", "bash", "-c", SAVE, "bash", "x")
    jobs.call("logs", "--follow", "--job=j")
    assert saved(jobs.home(0) / name) == ["", "x"]
    assert not list(jobs.folder.rglob("INJECTED"))


def test_printed_lines_are_what_runs(jobs):
    """A dry run's line, given to bash, calls gcloud with the same arguments."""
    jobs.shrink()
    out = jobs.call("run", "--dry-run", "--job=j", "--", "bash", "-c", SAVE, "bash", *HOSTILE)
    line = out[out.index("$ gcloud") + 2 : out.index("job j:")]
    before = len(jobs.calls())
    subprocess.run(["bash", "-c", line], env=jobs.env, check=True, capture_output=True)
    jobs.call("logs", "--follow")
    assert saved(jobs.home(0) / "codecvit") == ["", *HOSTILE]
    assert [call[3] for call in jobs.calls()[before:]][0] == "ssh"
    assert not list(jobs.folder.rglob("INJECTED"))


def test_no_gcloud_call_is_made_with_a_name_that_google_would_not_give(cloud):
    for flag in ("--tpu", "--zone", "--project"):
        for name in (*HOSTILE[:10], "A", "user@pod", "pod:", "../pod", "-"):
            out = cloud.call("kill", "--yes", f"{flag}={name}", code=2)
            assert f"tpu: {flag} = {name!r}" in out
    assert not cloud.calls()


def test_names_of_jobs_and_folders_are_checked(jobs):
    for name in ("a b", "../x", "-x", "x;y", ".hidden", "x" * 101):
        assert "letters, digits" in jobs.call("run", f"--job={name}", "--", "true", code=2)
    for name in ("", "~", "/", "../x", "a/../../x"):
        out = jobs.call("run", f"--remote-dir={name}", "--", "true", code=2)
        assert "must name a folder of its own" in out
    assert "put it behind --" in jobs.call("run", code=2)
    assert all(call[3] == "describe" for call in jobs.calls())
