"""What an installed package holds, and what its base install can do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys
# An editable install of the checkout maps the name by a finder of its own: it must not answer here.
sys.meta_path = [f for f in sys.meta_path if "editable" not in str(f).lower()]
import codecvit
assert codecvit.__file__.startswith(sys.argv[1]), codecvit.__file__
names = [m.name for m in pkgutil.walk_packages(codecvit.__path__, "codecvit.")]
for name in names:
    if name != "codecvit.llava.benchmarks.lmms_model":  # a subclass of what lmms-eval brings
        importlib.import_module(name)
print("\\n".join(names))
"""


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory) -> Path:
    """Built from a copy: setuptools packs whatever an earlier build left in build/ of its tree."""
    out = tmp_path_factory.mktemp("wheel")
    tree = out / "tree"
    shutil.copytree(root / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tree)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, tree]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("codecvit-*.whl"))


def source_packages(root):
    folders = {path.parent for path in (root / "src").rglob("*.py")}
    return {".".join(["codecvit", *f.relative_to(root / "src").parts]) for f in folders}


def test_pyproject_names_every_package(root):
    """A package mapped onto src/ silently loses the sub-packages that are not named."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert set(project["tool"]["setuptools"]["packages"]) == source_packages(root)
    for package in source_packages(root):
        parts = package.split(".")[1:]
        assert (root.joinpath("src", *parts) / "__init__.py").is_file(), package


def test_the_wheel_holds_every_module_and_all_of_them_import(root, wheel, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target"]
    target = tmp_path / "site"
    subprocess.run([*install, target, wheel], check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT_ALL, str(target)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    modules = {
        ".".join(["codecvit", *path.relative_to(root / "src").with_suffix("").parts])
        for path in (root / "src").rglob("*.py")
        if path.name != "__init__.py"
    }
    assert modules | source_packages(root) == {"codecvit", *done.stdout.split()}
    # An export copies the modelling files as text.
    for path in (root / "src" / "convert" / "hf").glob("*.py"):
        installed = target / "codecvit" / "convert" / "hf" / path.name
        assert installed.read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_the_base_install_packs_without_jax_and_torch(root, wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", root / "constraints.txt"]
    subprocess.run([*pip, wheel], check=True, capture_output=True)
    script = """
import importlib.util
import codecvit
codecvit.pack_video, codecvit.pack_image
for absent in ("jax", "torch", "grain"):
    assert importlib.util.find_spec(absent) is None, absent
"""
    subprocess.run([python, "-c", script], cwd=tmp_path, check=True)
    for verb in ([], ["pack"], ["inspect"], ["show"]):
        command = [tmp_path / "venv" / "bin" / "codecvit", *verb, "--help"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
