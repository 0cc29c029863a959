"""The verbs as a whole: imports, and the demo script."""

from __future__ import annotations

import subprocess
import sys

import pytest

from codecvit.codec.llava.cli import VERBS, main


def test_the_verbs_explain_themselves(capsys):
    assert main([]) == 2
    usage = capsys.readouterr().out
    assert main(["--help"]) == 0 and capsys.readouterr().out == usage
    assert main(["chek"]) == 2 and "no verb 'chek'" in capsys.readouterr().err
    for verb in VERBS:
        assert f"  {verb} " in usage
        try:
            status = main([verb, "--help"])
        except SystemExit as end:  # argparse leaves by itself
            status = end.code
        assert status == 0
        assert f"usage: codecvit llava {verb}" in capsys.readouterr().out


def test_they_run_on_the_base_install():
    code = """
import sys
from codecvit.codec.llava import assets, check, data
assert not {"jax", "torch", "array_record", "codecvit.data"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # runs setup.sh
def test_the_demo_runs_from_any_folder(root, tmp_path):
    script = root / "scripts" / "llava" / "demo_data.sh"
    for skipped in (0, 24):
        done = subprocess.run(
            ["bash", str(script), "--out", "demo"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert f"{24 - skipped} ok, {skipped} skipped, 0 failed" in done.stdout
        assert done.stdout.rstrip().endswith("demo/train.jsonl: no problems")
    rows = (tmp_path / "demo" / "train.jsonl").read_text().splitlines()
    assert len(rows) == 25
