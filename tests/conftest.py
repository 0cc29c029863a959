"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # for compiler.py, under pytest's importlib mode
from compiler import xla_flags  # noqa: E402

# Tests see 8 CPU devices: sharded code must give the same numbers on 1 and on 8. Set before jax
# starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("XLA_FLAGS", xla_flags(devices=8))
# Many tests start real processes that compile the same small step: it is compiled once.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root."""
    return ROOT


@pytest.fixture(scope="session")
def media() -> Path:
    """A folder of real clips, which the repository does not carry; see CODECVIT_MEDIA."""
    folder = Path(os.environ.get("CODECVIT_MEDIA", ROOT.parent / "shared" / "media"))
    if not folder.is_dir():
        pytest.skip(f"no folder of real clips at {folder} (set CODECVIT_MEDIA)")
    return folder
