"""Stand-ins on PATH, and the launch scripts run as a user runs them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

STAND_INS = Path(__file__).parent / "stand_ins"
# What a user's shell, a scheduler or the tests themselves may have set.
FOREIGN = ("SLURM", "JAX_", "XLA_", "CODECVIT_CACHE", "CUDA_", "NCCL_")


class Shell:
    """Runs scripts with an environment of their own.

    Attributes:
      place: folder of the test, where stand-ins note what they were told.
      environment: what every command gets.
    """

    def __init__(self, root: Path, place: Path) -> None:
        self.root, self.place = root, place
        kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        path = f"{place / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}"
        self.environment = {**kept, "PATH": path + kept["PATH"], "STAND_IN_DIR": str(place)}
        (place / "bin").mkdir()

    def stand_in(self, *names: str) -> None:
        """Puts stand-ins of these tools on PATH."""
        for name in names:
            call = shlex.join([sys.executable, str(STAND_INS / f"{name}.py")])
            self.script(name, f'exec {call} "$@"')

    def script(self, name: str, body: str) -> None:
        """Puts a shell script on PATH."""
        path = self.place / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)

    def start(self, *words: object, **variables: str) -> subprocess.Popen[str]:
        """Starts a command in the root of the repository."""
        # Where the tests run in the background SIGINT is ignored, and a shell can't undo that.
        return subprocess.Popen(
            ["env", "--default-signal=INT", *(str(word) for word in words)],
            env={**self.environment, **variables},
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: object, timeout: float = 60, **variables: str) -> tuple[int, str]:
        """Exit status and output of a command."""
        process = self.start(*words, **variables)
        output = process.communicate(timeout=timeout)[0]
        return process.returncode, output

    def commands(self, *words: object, **variables: str) -> list[list[str]]:
        """The words of every command that a dry run prints."""
        status, output = self.run(*words, **{"DRY_RUN": "1", **variables})
        assert status == 0, output
        return [shlex.split(line[2:]) for line in output.splitlines() if line.startswith("$ ")]


@pytest.fixture
def shell(root, tmp_path) -> Shell:
    return Shell(root, tmp_path)


@pytest.fixture
def hostile() -> str:
    """Spaces, quotes and all that a shell would act on, if it were not quoted."""
    return """a b'c"d;$(touch hacked)`touch hacked`&|*"""
