"""`codecvit pack` and `codecvit inspect`: real clips, failures, determinism, resuming."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from codecvit.codec.config import SelectionConfig
from codecvit.codec.pack import pack_image, pack_video
from codecvit.data import demo, inspect, pack
from codecvit.data.labels import load_labels
from codecvit.data.packing import draw_seed
from codecvit.data.record import RecordError
from codecvit.data.records import RecordSet

SMALL = ["--size", "56", "--budget", "48", "--num-frames", "8", "--storage", "png"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Nine short clips with labels in train.csv."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("demo")
    demo.write_demo(folder, train_clips=8, test_clips=1, seed=3, workers=0)
    return folder


def _run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "codecvit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def _files(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_any_number_of_workers_writes_the_same_bytes(clips, tmp_path):
    for workers in (0, 2):
        options = ["--mode", "codec,frames,collage", "--draws", "2", "--files-per-shard", "3"]
        command = [str(clips / "train.csv"), "--out", str(tmp_path / str(workers)), *SMALL]
        assert pack.main([*command, *options, "--workers", str(workers)]) == 0
    first, second = _files(tmp_path / "0"), _files(tmp_path / "2")
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == set()
    assert len([name for name in first if name.startswith("frames/part-")]) == 3


def test_records_are_what_the_api_packs(clips, tmp_path):
    out = tmp_path / "out"
    command = [str(clips / "train.csv"), "--out", str(out), "--mode", "codec,frames,collage"]
    assert pack.main([*command, *SMALL, "--set", "w_mv=1", "--workers", "0"]) == 0
    path = clips / "train" / "left" / "0001.mp4"
    for mode in ("codec", "frames", "collage"):
        record_set = RecordSet(out / mode)
        record = record_set[record_set.keys.index("train/left/0001.mp4")]
        expected = pack_video(path, mode, 8, 48, 56, config=SelectionConfig(w_mv=1))
        np.testing.assert_array_equal(record.sequence.patches, expected.patches)
        np.testing.assert_array_equal(record.sequence.positions, expected.positions)
        assert record.labels == {"motion": "left", "digit": "0"}
        assert record.source == "train/left/0001.mp4"
        np.testing.assert_allclose(record.pts[[0, -1]], [0, 23 / 12], atol=1e-3)
        assert len(record.pts) == 8 and record.descriptor.any()
    motion = load_labels(record_set, "motion")
    assert motion.classes == tuple(sorted(demo.MOTIONS))
    names = [motion.classes[i] for i in motion.values[:, 0]]
    assert names == [key.split("/")[1] for key in record_set.keys]


def test_draws_differ_and_follow_their_seed(clips, tmp_path):
    source = str(clips / "train" / "left" / "0001.mp4")
    options = ["--mode", "codec,frames", "--draws", "3", "--seed", "7", "--workers", "0"]
    assert pack.main([source, "--out", str(tmp_path), *SMALL, *options]) == 0
    assert len(RecordSet(tmp_path / "codec")) == 1
    frames = RecordSet(tmp_path / "frames")
    assert frames.keys == ["0001.mp4#0", "0001.mp4#1", "0001.mp4#2"]
    times = [record.sequence.positions[:, 0].tolist() for record in frames]
    assert len({str(row) for row in times}) > 1
    for draw, row in enumerate(times):
        seed = draw_seed(7, "0001.mp4", draw)
        expected = pack_video(source, "frames", 8, 48, 56, seed=seed).positions[:, 0]
        assert row == expected.tolist()


def test_failures_are_listed_and_the_rest_is_packed(clips, tmp_path):
    (tmp_path / "in").mkdir()
    good = (clips / "train" / "up" / "0003.mp4").read_bytes()
    (tmp_path / "in" / "good.mp4").write_bytes(good)
    (tmp_path / "in" / "empty.mp4").write_bytes(b"")
    Image.new("RGB", (80, 60), (200, 10, 10)).save(tmp_path / "in" / "red.png")
    (tmp_path / "in" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    done = _run("pack", tmp_path / "in", "--out", tmp_path / "out", *SMALL, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "codec: 1 records, 48 patches" in done.stdout and "1 files failed" in done.stdout
    assert "empty.mp4" in done.stderr and "torn.jpg" in done.stderr
    failures = (tmp_path / "out" / "codec" / "failures.jsonl").read_text().splitlines()
    (failure,) = map(json.loads, failures)
    assert (failure["key"], failure["kind"]) == ("empty.mp4", "MediaError")
    assert failure["reason"].startswith("empty.mp4: ")
    images = RecordSet(tmp_path / "out" / "image")
    assert images.keys == ["red.png"] and images.manifest["budget"] == 16
    expected = pack_image(tmp_path / "in" / "red.png", 56, 14)
    np.testing.assert_array_equal(images[0].sequence.patches, expected.patches)


def test_nothing_packed_is_an_error(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    done = _run("pack", tmp_path / "bad.mp4", "--out", tmp_path / "out", *SMALL, "--workers", 0)
    assert done.returncode == 1
    assert "nothing could be packed" in done.stderr and "bad.mp4" in done.stderr
    assert (tmp_path / "out" / "codec" / "failures.jsonl").is_file()
    with pytest.raises(RecordError, match="no finished record set"):
        RecordSet(tmp_path / "out" / "codec")


def test_a_finished_set_is_kept_and_another_one_refused(clips, tmp_path, capsys):
    source = str(clips / "train" / "left" / "0001.mp4")
    command = [source, "--out", str(tmp_path), *SMALL, "--workers", "0"]
    assert pack.main(command) == 0
    shard = next((tmp_path / "codec").glob("part-*"))
    before = shard.stat().st_mtime_ns
    assert pack.main(command) == 0
    assert "packed already" in capsys.readouterr().out
    assert pack.main([*command, "--seed", "5"]) == 0, "the codec mode draws nothing"
    assert shard.stat().st_mtime_ns == before
    assert pack.main([*command, "--budget", "32"]) == 2
    assert "choose another --out or give --overwrite" in capsys.readouterr().err
    assert pack.main([*command, "--mode", "codec,frames"]) == 0
    assert shard.stat().st_mtime_ns == before
    assert pack.main([*command, "--budget", "32", "--overwrite"]) == 0
    assert RecordSet(tmp_path / "codec").manifest["tokens"]["max"] == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "codec,best"], "mode = 'best'"),
        (["--mode", "codec,codec"], "must name each mode once"),
        (["--budget", "15"], "budget = 15 is below one frame"),
        (["--num-frames", "65"], "num_frames = 65"),
        (["--size", "50"], "size = 50"),
        (["--draws", "0"], "draws = 0"),
        (["--draws", "2"], "mode codec draws nothing"),
        (["--set", "speed=3"], "speed=3"),
        (["--quality", "101"], "quality = 101"),
        (["--workers", "-1"], "workers = -1"),
        (["--workers", "0", "--time-limit", "5"], "needs workers of at least 1"),
        (["--shard", "2/2"], "shard = 2/2 must be i/N"),
        (["--out", "nope://bucket"], "nope://bucket"),
        (["--files-per-shard", "0"], "files per shard = 0"),
    ],
)
def test_options_that_cannot_work_are_named(tmp_path, capsys, options, message):
    (tmp_path / "a.mp4").write_bytes(b"")
    command = [str(tmp_path / "a.mp4"), "--out", str(tmp_path / "o"), *SMALL, *options]
    assert pack.main(command) == 2
    assert message in capsys.readouterr().err


def test_members_of_a_tar_are_packed(clips, tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, path in (("0.mp4", "train/up/0003.mp4"), ("1.mp4", "train/left/0001.mp4")):
            archive.add(clips / path, name)
        info = tarfile.TarInfo("1.cls")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"left"))
        bad = tarfile.TarInfo("2.mp4")
        archive.addfile(bad)
    command = [str(tmp_path / "s.tar"), "--out", str(tmp_path / "o"), *SMALL, "--workers", "0"]
    assert pack.main(command) == 0
    record_set = RecordSet(tmp_path / "o" / "codec")
    assert record_set.keys == ["s/0.mp4", "s/1.mp4"]
    expected = pack_video(clips / "train" / "left" / "0001.mp4", "codec", 8, 48, 56)
    np.testing.assert_array_equal(record_set[1].sequence.patches, expected.patches)
    assert load_labels(record_set, "label").values.tolist() == [[-1], [0]]
    (failure,) = map(
        json.loads, (tmp_path / "o" / "codec" / "failures.jsonl").read_text().splitlines()
    )
    assert failure["reason"].startswith("s.tar/2.mp4: ")


def test_packing_and_inspecting_real_clips(media, tmp_path):
    done = _run(
        *("pack", media, "--out", tmp_path, "--mode", "codec,frames", "--size", 112),
        *("--budget", 128, "--num-frames", 16, "--workers", 2),
    )
    assert done.returncode == 0, done.stderr
    record_set = RecordSet(tmp_path / "codec")
    healthy = {
        path.name for path in media.iterdir() if path.suffix in (".mp4", ".avi", ".mkv", ".mov")
    }
    assert healthy - {"corrupted.mp4"} <= set(record_set.keys)
    assert all(64 < len(record.sequence) <= 128 for record in record_set)
    picture = tmp_path / "sheet.png"
    done = _run("inspect", tmp_path / "codec", "--out", picture, "--count", 3)
    assert done.returncode == 0, done.stderr
    assert f"{len(record_set)} in 1 shards" in done.stdout and "quality 95" in done.stdout
    assert Image.open(picture).height == 3 * 112 + 2 * 4


def test_inspect_draws_patches_at_their_places(clips, tmp_path):
    source = str(clips / "train" / "left" / "0001.mp4")
    assert pack.main([source, "--out", str(tmp_path), *SMALL, "--workers", "0"]) == 0
    record_set = RecordSet(tmp_path / "codec")
    sheet = np.asarray(inspect.contact_sheet(record_set, 1))
    sequence = record_set[0].sequence
    times = np.unique(sequence.positions[:, 0])
    assert len(times) <= 8, "all frames are shown"
    for patch, (t, h, w) in zip(sequence.patches, sequence.positions, strict=True):
        left = int(np.searchsorted(times, t)) * (56 + 4) + w * 14
        np.testing.assert_array_equal(sheet[h * 14 : h * 14 + 14, left : left + 14], patch)


def test_inspect_goes_on_after_labels_of_other_records(tmp_path, write_set):
    write_set(tmp_path, 12)
    description = {"mode": "codec", "patch": 4, "size": 32, "budget": 16, "storage": "raw"}
    label_file = (tmp_path / "labels" / "parity.json").read_text()
    write_set(tmp_path, 8)
    (tmp_path / "labels" / "parity.json").write_text(label_file)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **description}))
    rows = dict(inspect.counts(RecordSet(tmp_path)))
    assert rows["records"] == "8 in 2 shards"
    assert rows["labels parity"].startswith("unusable: ")


def test_inspect_names_what_is_no_set(tmp_path):
    done = _run("inspect", tmp_path)
    assert done.returncode == 1 and "no finished record set" in done.stderr


def test_help_loads_neither_jax_nor_torch():
    code = (
        "import sys\n"
        "from codecvit.__main__ import main\n"
        "try:\n    main(['pack', '--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'jax', 'torch', 'grain', 'sklearn', 'ray', 'fsspec'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    options = "--mode --draws --labels --storage --preset --workers --runner --shard --max-failures"
    assert all(option in done.stdout for option in options.split())
