"""What setup.sh refuses before it touches anything."""

from __future__ import annotations

import os
import shutil
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
        (["CHECK=maybe"], "CHECK=maybe is not one of yes, no, only"),
    ],
)
def test_wrong_requests_are_named(root, tmp_path, arguments, message):
    venv = tmp_path / "venv"
    command = ["bash", root / "setup.sh", f"VENV={venv}", f"PYTHON={sys.executable}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert not venv.exists()


def smi(version, count=2):
    """An nvidia-smi that lists so many GPUs."""
    return f'for i in $(seq {count}); do echo "{version}, NVIDIA H200"; done'


def df(gigabytes):
    """A df that says how much is free."""
    kilobytes = gigabytes * 1_000_000_000 // 1024 + 1
    return f'echo Filesystem; echo "/dev/sda1 0 0 {kilobytes} 0% /"'


@pytest.fixture
def setup(root, tmp_path):
    """Runs setup.sh with stand-ins of the named tools; gives exit status and all output."""

    def run(*arguments, python=sys.executable, **tools):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, body in tools.items():
            tool = folder / name.replace("_", "-").replace("python3-", "python3.")
            tool.write_text(f"#!/bin/sh\n{body}\n")
            tool.chmod(0o755)
        given = [f"PYTHON={python}"] if python else []
        command = ["bash", root / "setup.sh", f"VENV={tmp_path / 'venv'}", *given, *arguments]
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert not (tmp_path / "venv").exists()
        return done.returncode, done.stdout

    return run


@pytest.mark.parametrize(
    ("device", "tools", "message"),
    [
        (
            "cuda",
            {"nvidia_smi": smi("550.54.15")},
            "driver 550.54.15 is older than 580, which CUDA 13",
        ),
        (
            "gpu",
            {"nvidia_smi": "echo No devices were found; exit 6"},
            "fails: No devices were found",
        ),
        ("cuda", {"nvidia_smi": "exit 0"}, "nvidia-smi lists no GPU"),
        ("cuda", {"nvidia_smi": smi("[N/A]")}, "nvidia-smi tells no driver version: [N/A]"),
        (
            "tpu",
            {"ls": "exit 2"},
            "neither /dev/accel* nor /dev/vfio/* is there: this is no TPU VM",
        ),
        ("cpu", {"df": df(4)}, "needs 5 GB, but"),
        ("cuda", {"df": df(19), "nvidia_smi": smi("580.65.06")}, "has 19 GB free: make room"),
    ],
)
def test_what_the_machine_lacks_is_named_before_anything_is_installed(
    setup, device, tools, message
):
    status, output = setup(f"DEVICE={device}", **tools)
    assert status == 2
    assert message in output


def test_no_driver_at_all(setup, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has one")
    status, output = setup("DEVICE=cuda")
    assert status == 2
    assert "no nvidia-smi is on PATH: install the NVIDIA driver (580 or newer;" in output


@pytest.mark.parametrize(
    ("device", "tools", "found"),
    [
        ("cuda", {"nvidia_smi": smi("580.65.06", 8)}, "8 x NVIDIA H200, driver 580.65.06"),
        ("cuda", {"nvidia_smi": smi("1001.2")}, "2 x NVIDIA H200, driver 1001.2"),
        ("tpu", {"ls": "echo /dev/accel0; echo /dev/accel1; exit 2"}, "2 TPU chips (/dev/accel0"),
        ("cpu", {"df": df(5), "nvidia_smi": "exit 9"}, "5 GB free"),
        ("cpu", {"nvidia_smi": smi("580.1")}, "a GPU that DEVICE=cuda would use"),
    ],
)
def test_a_check_alone_tells_what_is_there(setup, device, tools, found):
    status, output = setup(f"DEVICE={device}", "CHECK=only", **tools)
    assert status == 0, output
    assert found in output
    assert f"checked: Python 3.{sys.version_info.minor}, " in output


def test_an_install_for_an_accelerator_that_is_elsewhere(setup, tmp_path):
    """It comes as far as making the environment, without an nvidia-smi."""
    no_venv = tmp_path / "no_venv"
    no_venv.write_text(
        f'#!/bin/sh\ncase "$*" in *venv*) exit 1 ;; esac\nexec {sys.executable} "$@"\n'
    )
    no_venv.chmod(0o755)
    status, output = setup("DEVICE=cuda", "CHECK=no", python=no_venv)
    assert status == 2
    assert "accelerator not looked for" in output and "could not create" in output


def test_an_old_python3_is_passed_over_for_a_newer_one_beside_it(setup):
    old = 'case "$*" in *exit*) exit 1 ;; esac; echo 3.10'
    status, output = setup("CHECK=only", python=None, python3=old, python3_12=old, python3_11=old)
    assert status == 2
    assert "python3 is Python 3.10; 3.11 or newer is needed" in output
    newer = {"python3_12": f'exec {sys.executable} "$@"'}
    status, output = setup("CHECK=only", python=None, python3=old, **newer)
    assert status == 0, output
    assert f"checked: Python 3.{sys.version_info.minor}" in output


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
