"""A cloud of local processes; see cloud.py."""

from __future__ import annotations

import pytest

from .cloud import Cloud, until


@pytest.fixture
def wait_until():
    """A function that waits for a condition."""
    return until


@pytest.fixture
def empty_cloud(tmp_path):
    """No TPU yet; new ones have two workers."""
    folder = tmp_path / "cloud"
    folder.mkdir()
    cloud = Cloud(folder, workers=2)
    yield cloud
    cloud.end()


@pytest.fixture
def cloud(empty_cloud):
    """The TPU `pod` with two workers, empty homes."""
    empty_cloud.make()
    return empty_cloud


@pytest.fixture
def jobs(cloud):
    """The TPU `pod` with a tree on its workers."""
    cloud.install()
    return cloud
