"""`codecvit probe-data`: what it reports, and its record sets from download to patches."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
from layouts import jester, put, ssv2, table
from PIL import Image

from codecvit.data.labels import load_labels
from codecvit.data.records import RecordSet
from codecvit.evaluators.probe_data import main, view_options

SMALL = ["--size", "32", "--patch", "16", "--workers", "0"]
RED, GREEN, BLUE = range(3)


def video(path, frames):
    """A video of 10 frames a second, of frames uint8 [M, H, W, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 5
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def colours(*order, frames=10):
    """So many frames of each of these colours."""
    pixels = np.zeros((len(order) * frames, 32, 32, 3), np.uint8)
    for place, colour in enumerate(order):
        pixels[place * frames : (place + 1) * frames, ..., colour] = 250
    return pixels


def stripes():
    """Red, green and blue from left to right, moving in nothing."""
    pixels = np.zeros((12, 32, 96, 3), np.uint8)
    for third in range(3):
        pixels[:, :, 32 * third : 32 * (third + 1), third] = 250
    return pixels


def seen(record):
    """The colours of a record's patches, by time."""
    means = record.sequence.patches[:, 4:-4, 4:-4].mean(axis=(1, 2))
    return means.argmax(axis=1).tolist()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folders(tmp_path):
    root = tmp_path / "data"
    video(root / "train" / "run" / "1.mp4", colours(RED, GREEN))
    video(root / "train" / "jump" / "2.mp4", colours(BLUE))
    video(root / "test" / "run" / "3.mp4", colours(GREEN, BLUE))
    put(root / "test" / "jump" / "4.mp4", b"no video at all")
    (root / "test" / "jump").mkdir(exist_ok=True)
    Image.fromarray(colours(BLUE)[0]).save(root / "test" / "jump" / "5.png")
    return root


def test_packs_every_split_and_input(folders, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["folders:toy", "--root", str(folders), "--out", str(out)]
    assert main([*command, "--inputs", "frames2,codec7", *SMALL]) == 0
    assert json.loads((out / "dataset.json").read_text()) == {
        "name": "toy",
        "num_classes": 2,
        "classes": ["jump", "run"],
        "metric": "top1",
    }
    assert lines(out / "train.jsonl") == [
        {"key": "jump/2.mp4", "labels": [0]},
        {"key": "run/1.mp4", "labels": [1]},
    ]
    assert lines(out / "test.jsonl") == [
        {"key": "jump/4.mp4", "labels": [0]},
        {"key": "jump/5.png", "labels": [0]},
        {"key": "run/3.mp4", "labels": [1]},
    ]
    train, test = RecordSet(out / "train" / "frames2"), RecordSet(out / "test" / "frames2")
    assert train.keys == ["jump/2.mp4", "run/1.mp4"]
    assert test.keys == ["jump/5.png", "run/3.mp4"]  # no record stands in for the unreadable one
    (failure,) = lines(out / "test" / "frames2" / "failures.jsonl")
    assert failure["key"] == "jump/4.mp4" and "cannot be opened" in failure["reason"]
    assert seen(train[1]) == [RED] * 4 + [GREEN] * 4  # two frames of 2 x 2 patches
    assert seen(test[0]) == [BLUE] * 4
    codec = RecordSet(out / "train" / "codec7")
    assert [len(record.sequence) for record in codec] == [7, 7]
    assert load_labels(codec, "label").values.tolist() == [[0], [1]]
    assert "test: files: 2 ok, 0 skipped, 1 failed" in capsys.readouterr().out


def test_a_second_run_has_nothing_to_do_and_array_jobs_write_the_same(folders, tmp_path, capsys):
    command = ["folders:toy", "--root", str(folders), "--inputs", "frames2", *SMALL]
    command += ["--files-per-shard", "1"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*command, "--out", str(one)]) == 0
    assert main([*command, "--out", str(one)]) == 0
    assert capsys.readouterr().out.count("packed already, nothing to do") == 2
    assert main([*command, "--out", str(two), "--shard", "0/2"]) == 0
    assert not (two / "train" / "frames2" / "manifest.json").exists()
    assert main([*command, "--out", str(two), "--shard", "1/2"]) == 0
    written = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert len(written) > 10
    for name in written:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_segments_see_their_own_frames(tmp_path):
    root, out = tmp_path / "data", tmp_path / "out"
    video(root / "long.mp4", colours(RED, GREEN, BLUE))
    rows = [["path", "label", "start", "end"]]
    rows += [["long.mp4", "0", "", ""], ["long.mp4", "1", "1", "2"], ["long.mp4", "2", "2", "9"]]
    table(root / "train.csv", rows)
    table(root / "test.csv", rows[:2])
    command = ["csv:", "--root", str(root), "--out", str(out), "--inputs", "frames3,codec9"]
    assert main([*command, *SMALL]) == 0
    for name in ("frames3", "codec9"):
        records = RecordSet(out / "train" / name)
        whole, second, third = (
            records[records.keys.index(key)] for key in ("long.mp4", "long.mp4@1-2", "long.mp4@2-9")
        )
        assert set(seen(second)) == {GREEN} and set(seen(third)) == {BLUE}
        assert set(seen(whole)) == {RED, GREEN, BLUE}


def test_views_are_other_crops_and_moments_of_the_same_examples(tmp_path):
    root, out = tmp_path / "data", tmp_path / "out"
    for name in ("train", "test"):
        video(root / name / "a" / "wide.mp4", stripes())
        video(root / name / "a" / "changing.mp4", colours(RED, GREEN, BLUE, GREEN, frames=4))
    command = ["folders:", "--root", str(root), "--out", str(out), "--inputs", "frames1,codec6"]
    assert main([*command, "--views", "2x3", *SMALL]) == 0
    assert {path.name for path in (out / "train").iterdir()} == {"frames1", "codec6"}
    names = [f"frames1{view}" for view in ("", *(f".view{i}" for i in range(1, 6)))]
    sets = [RecordSet(out / "test" / name) for name in names]
    assert all(record_set.keys == ["a/changing.mp4", "a/wide.mp4"] for record_set in sets)
    wide = [set(seen(record_set[1])) for record_set in sets]
    assert wide == [{GREEN}, {RED}, {BLUE}] * 2
    moments = [set(seen(record_set[0])) for record_set in sets]
    assert moments == [{BLUE}] * 3 + [{RED}] * 3  # the middle frame; the first one
    codec = RecordSet(out / "test" / "codec6.view3").manifest
    assert (codec["phase"], "cut_at" in codec) == (0.0, False)
    assert {"phase", "cut_at"}.isdisjoint(RecordSet(out / "test" / "codec6").manifest)


def test_view_options():
    centre = {"phase": None, "cut_at": 0.5}
    assert view_options("1x1") == [centre]
    assert view_options("1x3") == [centre, {**centre, "cut_at": 0}, {**centre, "cut_at": 1}]
    assert [view["phase"] for view in view_options("4x1")] == [None, 0.75, 0.0, 0.25]
    assert [view["cut_at"] for view in view_options("1x5")] == [0.5, 0, 0.25, 0.75, 1]


def test_what_is_missing_is_reported_and_stops_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    ssv2(root)
    (root / "20bn-something-something-v2" / "9.webm").unlink()
    assert main(["ssv2", "--root", str(root)]) == 1
    printed = capsys.readouterr()
    table_lines = [line.split() for line in printed.out.splitlines()]
    assert ["train", "2", "2", "0", "0", "1"] in table_lines
    assert ["test", "1", "0", "1", "0", "1"] in table_lines
    assert "missing (1): test: 20bn-something-something-v2/9" in printed.out
    assert "class that never occurs (346): train: Moving something 0 ways; " in printed.out
    assert "not complete" in printed.err
    problems = (tmp_path / "ssv2-problems.txt").read_text().splitlines()
    assert "missing\ttest\t20bn-something-something-v2/9" in problems and len(problems) == 347
    out = tmp_path / "out"
    assert main(["ssv2", "--root", str(root), "--out", str(out), *SMALL]) == 1
    assert not (out / "test").exists()
    assert main(["ssv2", "--root", str(root), "--allow-missing"]) == 0
    table(root / "train.csv", [["path", "label"], ["train.csv", "0"]])
    table(root / "test.csv", [["path", "label"], ["test.csv", "0"]])
    put(tmp_path / "csv-problems.txt", "of an earlier run")
    assert main(["csv:", "--root", str(root)]) == 0
    assert not (tmp_path / "csv-problems.txt").exists()


def test_missing_files_stay_in_the_lists(tmp_path):
    root, out = tmp_path / "data", tmp_path / "out"
    ssv2(root)
    videos = root / "20bn-something-something-v2"
    for name in ("78687", "42"):
        (videos / f"{name}.webm").unlink()
        video(videos / f"{name}.mp4", colours(RED))
    command = ["ssv2", "--root", str(root), "--out", str(out), "--inputs", "frames2"]
    (videos / "9.webm").unlink()
    assert main([*command, "--allow-missing", *SMALL]) == 0
    assert lines(out / "test.jsonl") == [{"key": "9", "labels": [7]}]
    (failure,) = lines(out / "test" / "frames2" / "failures.jsonl")
    assert failure["key"] == "9"
    assert not (out / "test" / "frames2" / "manifest.json").exists()
    assert RecordSet(out / "train" / "frames2").keys == ["42", "78687"]


def test_folders_of_images_are_videos(tmp_path):
    root, out = tmp_path / "data", tmp_path / "out"
    jester(root)
    for path in root.rglob("*.jpg"):
        Image.fromarray(colours(GREEN)[0]).save(path)
    command = ["jester", "--root", str(root), "--out", str(out), "--inputs", "frames2"]
    assert main([*command, *SMALL]) == 0
    record = RecordSet(out / "train" / "frames2")[0]
    assert record.key == "34870" and len(record.sequence) == 8
    np.testing.assert_allclose(record.pts, [0, 1 / 12, 2 / 12], atol=1e-6)


def test_examples_of_both_splits_and_bad_lines_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "a.mp4")
    rows = [["path", "label", "start", "end"], ["a.mp4", "3", "", ""], ["a.mp4", "0", "1", "2"]]
    table(tmp_path / "train.csv", rows)
    table(tmp_path / "test.csv", [*rows[:2], ["a.mp4", "63", "2", "3"]])
    assert main(["csv:perception_test", "--root", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "in both splits (1): train, test: a.mp4" in printed
    assert "bad line (1): test: a.mp4: label 63 lies outside 0..62" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--views", "2x2"], "views = '2x2' must be offsets x crops, with an odd number of crops"),
        (["--views", "3"], "views = '3' must be"),
        (["--inputs", "frame8"], "input 'frame8' must be framesN"),
        (["--inputs", "frames65"], "input 'frames65' has more than 64 frames"),
        (["--inputs", "codec3"], "budget = 3 is below one frame of 4 patches"),
        (["--set", "scale=none"], "scale = 'none'"),
        (["--set", "policy=groups"], "policy = 'groups' makes several records"),
        (["--root", "nowhere"], "root = nowhere is no folder"),
    ],
)
def test_wrong_use_is_refused_before_any_work(options, message, folders, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["folders:", "--root", str(folders), "--out", str(out), *SMALL]
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_an_empty_split_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ssv2(tmp_path)
    put(tmp_path / "labels" / "validation.json", [])
    assert main(["ssv2", "--root", str(tmp_path)]) == 2
    assert "split test has no example" in capsys.readouterr().err
