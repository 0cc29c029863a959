"""The laptop's commands in docs/start.md do what the page says, as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from compiler import xla_flags

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "start.md"


def laptop_commands():
    section = PAGE.read_text().split("## A laptop")[1].split("\n## ")[0]
    blocks = re.findall(r"^```bash\n(.*?)^```", section, flags=re.S | re.M)
    lines = re.sub(r"\\\n\s*", " ", "\n".join(blocks)).splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("codecvit ")]
    return [command for command in commands if "--dry-run" not in command]


@pytest.mark.slow
def test_the_commands_of_the_laptop_run(tmp_path):
    env = {**os.environ, "XLA_FLAGS": xla_flags(), "JAX_PLATFORMS": "cpu"}
    commands = laptop_commands()
    assert [command[1] for command in commands] == [
        *("demo-data", "pack", "inspect", "cluster", "train")
    ]
    for command in commands:
        arguments = [text.replace("=src/configs", f"={ROOT}/src/configs") for text in command[1:]]
        done = subprocess.run(
            [sys.executable, "-m", "codecvit", *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.count("train/loss ") == 4  # a line every 5 of 20 steps
    assert (tmp_path / "runs/first/checkpoints/20").is_dir()
