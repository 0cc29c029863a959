"""Packing with real processes: many ways to the same bytes, kills, time limits, URLs, memory."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from codecvit.data import demo, pack
from codecvit.data.labels import load_labels
from codecvit.data.record import RecordError
from codecvit.data.records import RecordSet

SMALL = ["--size", "56", "--budget", "48", "--num-frames", "8", "--storage", "png"]
WAYS = [*SMALL, "--mode", "codec,frames", "--draws", "2", "--files-per-shard", "2"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Nine short clips and one file that is no video, all in table.csv with two labels."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("clips")
    demo.write_demo(folder, train_clips=9, test_clips=1, seed=3, workers=0)
    (folder / "train" / "left" / "broken.mp4").write_bytes(b"no video")
    lines = (folder / "train.csv").read_text().splitlines()
    lines.append("train/left/broken.mp4,left,")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


def _command(*arguments) -> list[str]:
    return [sys.executable, "-m", "codecvit", "pack", *map(str, arguments)]


def _pack(*arguments, status: int = 0, **environment: str) -> str:
    """Runs `codecvit pack` as a process and returns what it printed, errors included."""
    done = subprocess.run(
        _command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def _counts(text: str) -> tuple[int, int, int]:
    """Files that were packed, skipped, failed, by what a run printed."""
    (found,) = re.findall(r"^files: (\d+) ok, (\d+) skipped, (\d+) failed$", text, re.MULTILINE)
    return tuple(map(int, found))


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def reference(clips, tmp_path_factory) -> dict[str, bytes]:
    """What one process writes."""
    out = tmp_path_factory.mktemp("reference")
    text = _pack(clips / "table.csv", "--out", out, *WAYS, "--workers", 0)
    assert _counts(text) == (9, 0, 1)
    files = _files(out)
    shards = [name for name in files if name.endswith(".array_record")]
    assert len(shards) == 10, "five of each mode"
    assert len(RecordSet(out / "frames")) == 2 * len(RecordSet(out / "codec")) == 18
    return files


def test_workers_write_the_same_bytes(clips, tmp_path, reference):
    for workers in (1, 2):
        out = tmp_path / str(workers)
        _pack(clips / "table.csv", "--out", out, *WAYS, "--workers", workers)
        assert _files(out) == reference


@pytest.mark.slow
def test_ray_writes_the_same_bytes(clips, tmp_path, reference):
    pytest.importorskip("ray")
    ray = ("--runner", "ray", "--workers", 2, "--time-limit", 120)
    _pack(clips / "table.csv", "--out", tmp_path, *WAYS, *ray, RAY_ADDRESS="")
    assert _files(tmp_path) == reference


def test_array_jobs_write_the_same_bytes_in_any_order(clips, tmp_path, reference):
    """The last one to end finishes the sets; running one again changes nothing."""
    command = [clips / "table.csv", "--out", tmp_path, *WAYS, "--workers", 0]
    counts = []
    for i in (2, 0, 1):
        with pytest.raises(RecordError, match="no finished record set"):
            RecordSet(tmp_path / "codec")
        text = _pack(*command, "--shard", f"{i}/3")
        assert ("the job that does the last one finishes the set" in text) == (i != 1)
        counts.append(_counts(text))
    assert [sum(c) for c in counts] == [2, 4, 4], "shards 2, then 0 and 3, then 1 and 4"
    assert [sum(c) for c in zip(*counts, strict=True)] == [9, 0, 1], "every file once"
    assert _files(tmp_path) == reference
    text = _pack(*command, "--shard", "1/3")
    ok, skipped, failed = _counts(text)
    assert "packed already" in text and (ok, skipped + failed) == (0, 4)
    assert _files(tmp_path) == reference


def test_two_jobs_that_finish_at_once_agree(clips, tmp_path, reference):
    command = [clips / "table.csv", "--out", tmp_path, *WAYS, "--workers", 0]
    jobs = [subprocess.Popen(_command(*command, "--shard", f"{i}/2")) for i in range(2)]
    assert [job.wait(timeout=200) for job in jobs] == [0, 0]
    assert _files(tmp_path) == reference


def test_a_damaged_or_missing_shard_alone_is_made_again(clips, tmp_path, reference):
    command = [str(clips / "table.csv"), "--out", str(tmp_path), *WAYS, "--workers", "0"]
    for name, data in reference.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    torn = tmp_path / "codec" / "part-00001-of-00005.array_record"
    torn.write_bytes(torn.read_bytes()[:-100])
    (tmp_path / "frames" / "part-00003-of-00005.array_record").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.array_record")}
    assert _counts(_pack(*command)) == (4, 5, 1), "two shards of two files"
    assert _files(tmp_path) == reference
    changed = [path for path, mtime in before.items() if path.stat().st_mtime_ns != mtime]
    assert changed == [torn]


def test_parts_of_another_set_are_not_taken_for_ones_own(clips, tmp_path, reference):
    command = [clips / "table.csv", "--out", tmp_path, *WAYS, "--workers", 0]
    _pack(*command, "--budget", 32, "--files-per-shard", 3, "--shard", "0/2")
    _pack(*command, "--budget", 32, "--shard", "1/2")
    assert _counts(_pack(*command)) == (9, 0, 1)
    assert _files(tmp_path) == reference, "what the others left is gone"


# A file that blocks whoever opens it: a pipe that nobody writes to.


@pytest.fixture
def blocked(clips, tmp_path):
    """A table of four clips and, under the first or last key, a pipe; and that pipe."""
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)

    def table(name: str) -> Path:
        target = tmp_path / name
        target.symlink_to(pipe)
        names = sorted((clips / "train").rglob("000[1-4].mp4"))
        path = tmp_path / "blocked.csv"
        path.write_text("\n".join(["path", *map(str, names), name]) + "\n")
        return path

    return table, pipe


def _wait_for(condition, what: str):
    """The first true value of `condition()`."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"no {what} in 60 s")


def _open_blocked(pipe: Path) -> int | None:
    """The writing end of the pipe, once somebody waits at its reading end."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        assert error.errno == errno.ENXIO
        return None


@contextlib.contextmanager
def _running(*arguments):
    process = subprocess.Popen(
        _command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _workers(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [
        int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_a_killed_worker_costs_one_retry_and_then_its_file(blocked, tmp_path):
    table, pipe = blocked
    out = tmp_path / "out"
    with _running(table("0.mp4"), "--out", out, *SMALL, "--workers", 1) as run:
        for _ in range(2):
            end = _wait_for(lambda: _open_blocked(pipe), "worker at the pipe")
            (worker,) = _workers(run)
            os.kill(worker, signal.SIGKILL)
            _wait_for(lambda pid=worker: set(_workers(run)) - {pid}, "next worker")
            os.close(end)
        text, _ = run.communicate(timeout=100)
    assert run.returncode == 0, text
    assert "4 records" in text and _counts(text) == (4, 0, 1)
    assert "failed: 0.mp4: the process that worked on it died twice" in text
    (failure,) = map(json.loads, (out / "codec" / "failures.jsonl").read_text().splitlines())
    assert (failure["key"], failure["kind"]) == ("0.mp4", "WorkerDied")


def test_a_file_over_its_time_is_listed_and_the_rest_goes_on(blocked, tmp_path):
    table, _ = blocked
    out = tmp_path / "out"
    options = ("--workers", 2, "--time-limit", 2, "--max-failures", 0)
    text = _pack(table("0.mp4"), "--out", out, *SMALL, *options, status=1)
    assert "4 records" in text and _counts(text) == (4, 0, 1)
    (failure,) = map(json.loads, (out / "codec" / "failures.jsonl").read_text().splitlines())
    assert failure == {
        "key": "0.mp4",
        "source": "0.mp4",
        "kind": "TimeLimit",
        "reason": "took longer than 2 s (--time-limit)",
    }


def test_a_killed_run_goes_on_where_it_was(blocked, tmp_path):
    table, pipe = blocked
    out = tmp_path / "out"
    command = [table("zz.mp4"), "--out", out, *SMALL, "--files-per-shard", 2, "--workers", 1]
    with _running(*command) as run:
        end = _wait_for(lambda: _open_blocked(pipe), "worker at the pipe")
        # Shards of 1, 2 and 2 files; the pipe is in the third.
        parts = out / "codec" / "parts"
        _wait_for(lambda: len(list(parts.glob("part-*.json"))) == 2, "second shard")
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        os.close(end)  # lets the orphaned worker go
    visible = [path.name for path in (out / "codec").iterdir() if path.name[0] != "."]
    shards = [f"part-{number:05d}-of-00003.array_record" for number in range(2)]
    assert sorted(visible) == [*shards, "parts"]
    before = {name: (out / "codec" / name).stat().st_mtime_ns for name in shards}
    text = _pack(*command, "--time-limit", 2)
    assert _counts(text) == (1, 3, 1)
    assert {name: (out / "codec" / name).stat().st_mtime_ns for name in shards} == before
    fresh = tmp_path / "fresh"
    _pack(*command, "--out", fresh, "--time-limit", 2)
    assert _files(out) == _files(fresh), "nor is anything half-written left"


def test_inputs_and_output_may_be_urls(clips, tmp_path, reference):
    """`dir://` is a remote file system of fsspec that every process here sees."""
    bucket = {"FSSPEC_DIR": json.dumps({"path": str(tmp_path), "target_protocol": "file"})}
    (tmp_path / "in").symlink_to(clips)
    command = ["dir://in/table.csv", "--out", "dir://out", *WAYS, "--workers", 2]
    text = _pack(*command, **bucket)
    assert "dir://out/codec: 9 records" in text
    found, expected = _files(tmp_path / "out"), dict(reference)
    # The size of a remote file in a table is not asked for, so it is not in the fingerprint.
    for files in (found, expected):
        for name in [name for name in files if name.endswith(".json") and "labels" not in name]:
            fields = json.loads(files[name])
            assert fields.pop("fingerprint")
            files[name] = json.dumps(fields).encode()
    assert found == expected
    assert _counts(_pack(*command, **bucket)) == (0, 9, 1)
    (tmp_path / "out" / "codec" / "part-00000-of-00005.array_record").unlink()
    ok, skipped, failed = _counts(_pack(*command, **bucket))
    assert ok + failed <= 3 and ok + skipped + failed == 10, "one shard of two files"


def test_a_remote_folder_is_packed_and_read_through_the_cache(clips, tmp_path, monkeypatch):
    """In one process, on fsspec's memory; the second opening fetches no shard."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(clips / "train"), "/videos", recursive=True)
    monkeypatch.setenv("CODECVIT_CACHE", str(tmp_path / "cache"))
    for source, out in (
        ("memory://videos", "memory://out"),
        (str(clips / "train"), tmp_path / "o"),
    ):
        command = [source, "--out", str(out), *SMALL, "--labels", "folders", "--workers", "0"]
        assert pack.main(command) == 0
    assert not [path for path in memory.find("/out") if path.endswith(".tmp")]
    remote, local = RecordSet("memory://out/codec"), RecordSet(tmp_path / "o" / "codec")
    assert remote.manifest == local.manifest
    assert [remote.read(i) for i in range(9)] == [local.read(i) for i in range(9)]
    labels = [load_labels(s, "label").values for s in (remote, local)]
    np.testing.assert_array_equal(*labels)
    assert tmp_path / "cache" in remote.path.parents
    memory.rm_file("/out/codec/part-00000-of-00001.array_record")
    assert RecordSet("memory://out/codec/").read(8) == local.read(8)
    memory.rm_file("/out/codec/manifest.json")
    with pytest.raises(RecordError, match="memory://out/codec is no finished record set"):
        RecordSet("memory://out/codec")


def _write_noise(path: Path, seconds: int) -> Path:
    """A clip of random pictures, 25 per second, 128 x 128."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 128
        stream.codec_context.gop_size = 12
        stream.codec_context.qmin, stream.codec_context.qmax = 2, 3
        for _ in range(25 * seconds):
            pixels = np.kron(rng.integers(0, 256, (16, 16, 3)), np.ones((8, 8, 1)))
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _repeat(source: Path, path: Path, times: int) -> Path:
    """The clip many times over, its packets copied."""
    with av.open(str(path), "w") as container:
        stream = None
        for lap in range(times):
            with av.open(str(source)) as original:
                video = original.streams.video[0]
                if stream is None:
                    stream = container.add_stream_from_template(video)
                lap_ticks = int(Fraction(video.frames, 25) / video.time_base)
                for packet in original.demux(video):
                    if packet.dts is None:
                        continue
                    packet.pts += lap * lap_ticks
                    packet.dts += lap * lap_ticks
                    packet.stream = stream
                    container.mux(packet)
    return path


PEAK = """
import resource, sys
from codecvit.data.pack import main
assert main(sys.argv[1:]) == 0
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    short = _write_noise(tmp_path / "short.mp4", 10)
    long = _repeat(short, tmp_path / "long.mp4", 60)
    peaks = {}
    for path in (short, long):
        options = ["--out", str(tmp_path / path.stem), "--size", "112", "--workers", "0"]
        command = [sys.executable, "-c", PEAK, str(path), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        peaks[path.stem] = int(done.stdout.split()[-1]) / 1024
        (record,) = RecordSet(tmp_path / path.stem / "codec")
        assert len(record.pts) == 64
    assert record.pts[-1] > 590, "ten minutes"
    growth = peaks["long"] - peaks["short"]
    print(f"peak {peaks['short']:.0f} MB for 10 s, {growth:+.1f} MB for 10 min")
    # Decoded, the long file is 370 MB; of all frames only the times may be held.
    assert long.stat().st_size > 50e6 and growth < 10
