"""Every shell script passes shellcheck."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHELLCHECK = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which(
    "shellcheck"
)


def scripts(root: Path) -> list[Path]:
    """Of the repository, not of what tests and runs have put beside it."""
    skipped = {"demo_out", "build", "dist"}
    return [
        path
        for path in sorted(root.rglob("*.sh"))
        if not any(
            part.startswith(".") or part in skipped for part in path.relative_to(root).parts[:-1]
        )
    ]


def check(root: Path, *paths: Path) -> subprocess.CompletedProcess:
    if SHELLCHECK is None:
        pytest.skip("no shellcheck on PATH: pip install 'codecvit[dev]', or the system's package")
    command = [
        SHELLCHECK,
        "--external-sources",
        f"--source-path=SCRIPTDIR:{root}",
        *map(str, paths),
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=root)


def test_shell_scripts_are_clean(root):
    found = scripts(root)
    assert {"setup.sh", "tpu_command.sh", "worker.sh"} <= {path.name for path in found}
    done = check(root, *found)
    assert done.returncode == 0, done.stdout


def test_a_script_that_splits_words_is_not(tmp_path):
    bad = tmp_path / "bad.sh"
    bad.write_text("#!/bin/bash\nrm $1\n")
    assert "SC2086" in check(tmp_path, bad).stdout
