"""Remote record sets: shards come when they are read, within a limit, for any number of readers."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from codecvit.data import cache
from codecvit.data.mixing import Mixture, stream
from codecvit.data.pipeline import make_loader
from codecvit.data.record import RecordError
from codecvit.data.records import RecordSet
from codecvit.files import upload

RECORDS, PER_SHARD = 40, 5
OPEN_FILES = Path("/proc/self/fd")
URL = "memory://bucket/set"


@pytest.fixture
def local(tmp_path, write_set):
    """Eight shards of five records."""
    return write_set(tmp_path / "local", RECORDS, PER_SHARD)


@pytest.fixture
def remote(local, tmp_path, monkeypatch):
    """The same set at URL, with an empty cache; returns the list of files that are fetched."""
    memory = fsspec.filesystem("memory")
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)
    upload(local.path, URL)
    monkeypatch.setenv("CODECVIT_CACHE", str(tmp_path / "cache"))
    fetched = []

    def download(url, path):
        fetched.append(Path(path).name)
        original(url, path)

    original = cache.download
    monkeypatch.setattr(cache, "download", download)
    return fetched


def shards_of(record_set):
    return sorted(record_set.path.glob("*.array_record"))


def limit_to(monkeypatch, local, shards):
    """Limits the cache to so many of the largest shards."""
    largest = max(shard["bytes"] for shard in local.manifest["shards"])
    monkeypatch.setenv("CODECVIT_CACHE_GB", repr(shards * largest / 1e9))
    return int(shards * largest)


def test_opening_fetches_no_shard_and_reading_fetches_it_once(remote, local):
    record_set = RecordSet(URL)
    assert len(record_set) == RECORDS and record_set.keys == local.keys
    assert [name for name in remote if name.endswith("array_record")] == []
    assert [record_set.read(i) for i in (7, 8, 7)] == [local.read(i) for i in (7, 8, 7)]
    assert remote.count("part-00001-of-00008.array_record") == 1
    assert [path.name for path in shards_of(record_set)] == ["part-00001-of-00008.array_record"]
    again = RecordSet(URL)
    assert again.read(9) == local.read(9)
    assert remote.count("part-00001-of-00008.array_record") == 1


def test_the_limit_drops_what_was_not_read_for_longest(remote, local, monkeypatch):
    limit_to(monkeypatch, local, 3)
    record_set = RecordSet(URL)
    for index in (0, 5, 10, 0, 15):  # the shard of 5 is the one not read for longest
        assert record_set.read(index) == local.read(index)
        time.sleep(0.01)
    kept = [int(path.name[5:10]) for path in shards_of(record_set)]
    assert kept == [0, 2, 3]
    assert record_set.read(6) == local.read(6), "it comes back"
    assert [int(path.name[5:10]) for path in shards_of(record_set)] == [0, 1, 3]


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="the system does not list open files")
def test_dropped_shards_are_not_held_open(remote, local, monkeypatch):
    """An open file keeps its room on the disk."""
    limit_to(monkeypatch, local, 2)
    record_set, other = RecordSet(URL), RecordSet(URL)
    for index in range(0, RECORDS, PER_SHARD):
        assert record_set.read(index) == other.read(index) == local.read(index)
    held = [os.fspath(path.readlink()) for path in OPEN_FILES.iterdir() if path.is_symlink()]
    assert [name for name in held if "array_record (deleted)" in name] == []


def test_a_shard_that_was_dropped_and_fetched_by_another_reader_is_opened_anew(
    remote, local, monkeypatch
):
    limit_to(monkeypatch, local, 1)
    one, two = RecordSet(URL), RecordSet(URL)
    one.read(0)
    two.read(5)
    two.read(0)
    inode = shards_of(one)[0].stat().st_ino
    assert one.read(1) == local.read(1)
    assert one._cached[0].inode == inode


def test_many_readers_share_the_cache_within_its_limit(local, tmp_path, monkeypatch):
    """Processes with threads, each in an order of its own, on `dir://`, which all of them see."""
    limit = limit_to(monkeypatch, local, 3.5)
    monkeypatch.setenv("CODECVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FSSPEC_DIR", f'{{"path": "{tmp_path}", "target_protocol": "file"}}')
    script = """
import random, sys, threading
from codecvit.data.records import RecordSet
remote, local = RecordSet("dir://local"), RecordSet(sys.argv[1])
bad = []
def read(seed):
    order = random.Random(seed).choices(range(len(local)), k=150)
    bad.extend(i for i in order if remote.read(i) != local.read(i))
threads = [threading.Thread(target=read, args=(f"{sys.argv[2]}/{n}",)) for n in range(3)]
[t.start() for t in threads]; [t.join() for t in threads]
sys.exit(len(bad))
"""
    command = [sys.executable, "-c", script, str(local.path)]
    readers = [subprocess.Popen([*command, str(n)]) for n in range(3)]
    most = 0
    while any(reader.poll() is None for reader in readers):
        most = max(most, _bytes_in(tmp_path / "cache"))
        time.sleep(0.002)
    assert [reader.returncode for reader in readers] == [0, 0, 0]
    assert 0 < most <= limit


def _bytes_in(folder):
    """Bytes of all shards, whole or being written."""
    total = 0
    for path in folder.glob("sets/*/*array_record*"):
        if not path.name.endswith(".lock"):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
    return total


def test_what_a_killed_process_left_makes_room(remote, local, monkeypatch):
    limit = limit_to(monkeypatch, local, 2)
    record_set = RecordSet(URL)
    torn = record_set.path / ".part-00007-of-00008.array_record.abc.tmp"
    torn.write_bytes(b"half")
    lock = record_set.path / ".part-00007-of-00008.array_record.lock"
    lock.touch()
    os.truncate(lock, limit)
    assert record_set.read(0) == local.read(0)
    assert not torn.exists() and lock.stat().st_size == 0


def test_a_shard_that_is_being_fetched_keeps_its_room(remote, local, monkeypatch):
    limit = limit_to(monkeypatch, local, 2)
    record_set = RecordSet(URL)
    lock = os.open(
        record_set.path / ".part-00007-of-00008.array_record.lock", os.O_RDWR | os.O_CREAT
    )
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.ftruncate(lock, limit)
    reader = threading.Thread(target=record_set.read, args=(0,))
    reader.start()
    reader.join(0.5)
    assert reader.is_alive() and not shards_of(record_set), "it waits"
    os.ftruncate(lock, 0)
    reader.join(10)
    os.close(lock)
    assert not reader.is_alive() and len(shards_of(record_set)) == 1


def test_a_missing_or_short_remote_shard_is_named_when_the_set_is_opened(remote):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/set/part-00002-of-00008.array_record", b"short")
    with pytest.raises(RecordError, match=r"part-00002-of-00008\.array_record has 5 bytes"):
        RecordSet(URL)


def test_what_cannot_be_fetched_stops_the_loader(remote, local):
    """As rows of weight 0 the records of a shard would be lost without a word."""
    memory = fsspec.filesystem("memory")
    record_set = RecordSet(URL)
    name = "part-00003-of-00008.array_record"
    size = local.manifest["shards"][3]["bytes"]
    memory.pipe_file(f"/bucket/set/{name}", bytes(size))
    with pytest.raises(OSError, match=f"{name} could not be fetched"):
        record_set.read(15)
    assert not (record_set.path / name).exists()
    memory.rm_file(f"/bucket/set/{name}")
    with (
        make_loader(record_set, batch_size=8, budget=8, shuffle=False) as loader,
        pytest.raises(OSError, match=f"{name} could not be fetched"),
    ):
        for _ in range(3):
            next(loader)


def test_a_limit_that_cannot_work_is_named(remote, local, monkeypatch):
    record_set = RecordSet(URL)
    for text in ("0", "-1", "much", "inf"):
        monkeypatch.setenv("CODECVIT_CACHE_GB", text)
        with pytest.raises(ValueError, match=f"CODECVIT_CACHE_GB = '{text}' must be"):
            record_set.read(0)
    limit_to(monkeypatch, local, 0.5)
    with pytest.raises(ValueError, match="is less than the shard part-00000"):
        record_set.read(0)


def test_an_order_that_the_cache_cannot_serve_is_refused(remote, local, monkeypatch):
    limit_to(monkeypatch, local, 5)
    record_set = RecordSet(URL)
    options = {"batch_size": 4, "budget": 8}
    with pytest.raises(ValueError, match="CODECVIT_CACHE_GB = .* smaller shuffle_window"):
        make_loader(record_set, **options)
    with pytest.raises(ValueError, match="smaller shuffle_window"):
        make_loader(record_set, shuffle_window=20, **options)
    with pytest.raises(ValueError, match="shuffle_window = -1"):
        make_loader(record_set, shuffle_window=-1, **options)
    make_loader(local, **options).close()
    make_loader(record_set, shuffle=False, **options).close()
    remote.clear()
    with make_loader(record_set, shuffle_window=5, **options) as loader:
        drawn = np.concatenate([next(loader)["index"] for _ in range(20)])
    assert sorted(drawn.tolist()) == sorted([*range(RECORDS)] * 2)
    assert len(remote) <= 2 * 8 + 1, "each shard once an epoch, and what was read ahead"


def test_two_windows_and_the_shards_at_their_edges_have_to_fit():
    """The next window is begun before the last one is done; at most the whole set."""
    shards = [{"bytes": 100, "records": 10}] * 20
    assert cache.cache_need(shards, 30) == 2 * 300 + 2 * 100
    assert cache.cache_need(shards, 1) == 2 * 10 + 2 * 100
    assert cache.cache_need(shards, 95) == cache.cache_need(shards, 200) == 2000


def test_windows_hold_their_records_in_a_drawn_order():
    numbers = stream([range(30)], Mixture([1]), 3, shuffle=True, window=8)
    drawn = [numbers[place] for place in range(240)]
    orders = set()
    for window in range(30):
        mine = drawn[8 * window : 8 * window + 8]
        expected = [(8 * window + n) % 30 for n in range(8)]
        assert sorted(mine) == sorted(expected)
        orders.add(tuple(expected.index(number) for number in mine))
    assert len(orders) > 25
    other = stream([range(30)], Mixture([1]), 4, shuffle=True, window=8)
    assert [other[place] for place in range(240)] != drawn
