"""What setup.sh refuses before it touches anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

SUPPORTED = "0.10.x" if sys.version_info < (3, 12) else "0.10.x to 0.12.x"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["JAX_VERSION=0.9.2"], f"for Python 3.{sys.version_info.minor}: {SUPPORTED}"),
        (["JAX_VERSION=0.13.0"], f"for Python 3.{sys.version_info.minor}: {SUPPORTED}"),
        (["JAX_VERSION=new"], "JAX_VERSION=new is no x.y.z"),
        (["DEVICE=npu"], "DEVICE=npu is not one of cpu, cuda (gpu), tpu"),
        (["EXTRAS=dev,nothing"], "EXTRAS names 'nothing'"),
        (["DEVICES=cpu"], "unknown argument 'DEVICES=cpu'"),
        (["PYTHON=no-such-python"], "no 'no-such-python' on PATH"),
    ],
)
def test_wrong_requests_are_named(root, tmp_path, arguments, message):
    venv = tmp_path / "venv"
    command = ["bash", root / "setup.sh", f"VENV={venv}", f"PYTHON={sys.executable}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert not venv.exists()


def test_constraints_pin_what_the_package_asks_for(root):
    """Every direct dependency of the base install, of training and of the export is pinned."""
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["train"] + extras["torch"] + extras["dev"]
    lines = (root / "constraints.txt").read_text().lower().replace("-", "_").splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    for requirement in wanted:
        name = requirement.split(">")[0].split("=")[0].split("[")[0].lower().replace("-", "_")
        assert name in pinned | {"setuptools"}, name
