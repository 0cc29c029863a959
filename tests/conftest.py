"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Tests see 8 CPU devices: sharded code must give the same numbers on 1 and on 8. They mostly
# compile, so the compiler does not optimise. Set before jax starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    os.environ.setdefault("XLA_FLAGS", flags)
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
