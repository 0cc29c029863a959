"""Demo data: classes cannot be told from one frame, splits are disjoint, boxes are true."""

from __future__ import annotations

import csv
import json

import av
import numpy as np
import pytest
from PIL import Image

from codecvit.codec.clip import sample_clip
from codecvit.codec.selection import select
from codecvit.data import demo, demo_scene
from codecvit.sequence import slot_times

pytest.importorskip("sklearn")


def test_one_frame_does_not_tell_the_motion():
    """At every frame each track has the same uniform distribution in all classes (99.9 % KS)."""
    rng = np.random.default_rng(0)
    count = 1500
    limit = 1.95 / np.sqrt(count)
    for motion in demo.MOTIONS:
        paths = [demo.draw_tracks(motion, rng) for _ in range(count)]
        for name, (low, high) in demo.TRACKS.items():
            values = np.array([path[name] for path in paths])
            for t in (0, demo.FRAMES // 2, demo.FRAMES - 1):
                place = np.sort((values[:, t] - low) / (high - low))
                distance = np.abs(place - (np.arange(count) + 0.5) / count).max()
                assert distance < limit, (motion, name, t)


def test_two_frames_do_tell_it():
    """Between neighbouring frames the class's own track moves, in its sense, and no other."""
    rng = np.random.default_rng(1)
    for motion, (moving, sense) in demo.MOTIONS.items():
        path = demo.draw_tracks(motion, rng)
        for name in demo.TRACKS:
            steps = np.diff(path[name])
            if name == moving:
                assert (np.sign(steps) == sense).sum() >= demo.FRAMES - 2
            else:
                assert not steps.any()


@pytest.mark.parametrize(
    ("motion", "check"),
    [
        ("right", lambda boxes: boxes[1, 0] > boxes[0, 0]),
        ("down", lambda boxes: boxes[1, 1] > boxes[0, 1]),
        ("growing", lambda boxes: boxes[1, 2] - boxes[1, 0] > boxes[0, 2] - boxes[0, 0]),
    ],
)
def test_what_is_drawn_moves_as_the_class_says(motion, check, monkeypatch):
    start = {"x": 64.0, "y": 64.0, "size": np.log(50.0), "angle": 0.0}
    moving, sense = demo.MOTIONS[motion]
    step = {"x": 10.0, "y": 10.0, "size": 0.3}[moving]

    def tracks(_motion, _rng):
        path = {name: np.full(demo.FRAMES, value) for name, value in start.items()}
        path[moving][1:] += sense * step
        return path

    monkeypatch.setattr(demo, "draw_tracks", tracks)
    monkeypatch.setattr(demo, "_DRIFT", 0.0)
    plan = demo.ClipPlan("train", list(demo.MOTIONS).index(motion), 0, None)
    assert check(demo.render(plan)[1])


def test_clockwise_turns_clockwise():
    """A point above the centre goes to the right when the angle grows."""
    ink = np.zeros((96, 96), np.float32)
    ink[4:12, 44:52] = 1
    rows, columns = np.nonzero(demo_scene.place_digit(ink, (64, 64), 1.0, np.radians(45)) > 0.5)
    assert rows.mean() < 64 and columns.mean() > 80


def test_splits_share_neither_digits_nor_photograph_regions():
    rng = np.random.default_rng(2)
    seen = {"train": set(), "test": set()}
    for split, images in seen.items():
        for _ in range(400):
            images.add(demo_scene.choose_digit(split, 3, rng).tobytes())
    assert len(seen["train"]) > 50 and len(seen["test"]) > 20
    assert not seen["train"] & seen["test"]


def test_backgrounds_come_from_their_own_side(monkeypatch):
    """Photographs that hold their column number: no window of one split reaches into the other."""
    columns = np.broadcast_to(np.arange(640) * 255 // 639, (427, 640))
    ramp = np.repeat(columns[:, :, None], 3, axis=2).astype(np.uint8)
    monkeypatch.setattr(demo_scene, "bundled_images", lambda: (None, None, [ramp]))
    rng = np.random.default_rng(3)
    drift = 0.35 * (np.arange(24)[:, None] - 11.5) * np.array([1, -1])
    limits = {}
    for split in ("train", "test"):
        windows = np.stack([demo_scene.draw_window(split, 0, drift, rng) for _ in range(40)])
        limits[split] = windows.min(), windows.max()
    assert limits["train"][1] < limits["test"][0]


def test_data_set_on_disk(tmp_path):
    folder = tmp_path / "demo"
    assert demo.write_demo(folder, train_clips=9, test_clips=3, seed=1, workers=0)
    with (folder / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["motion"] for row in rows[:8]] == list(demo.MOTIONS)
    assert {row["digit"] for row in rows} == {"0", "1"}
    boxes = json.loads((folder / "boxes.json").read_text())
    assert len(boxes) == 12
    for row in rows:
        assert row["path"].split("/")[:2] == ["train", row["motion"]]
        with av.open(str(folder / row["path"])) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == (
                "h264" if "libx264" in demo.video_encoder() else "mpeg4"
            )
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert len(frames) == demo.FRAMES and frames[0].shape == (
            demo_scene.SIDE,
            demo_scene.SIDE,
            3,
        )
        clip = np.array(boxes[row["path"]])
        assert clip.shape == (demo.FRAMES, 4) and (clip[:, :2] < clip[:, 2:]).all()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert not demo.write_demo(folder, train_clips=9, test_clips=3, seed=1, workers=0)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match="holds demo data made with"):
        demo.write_demo(folder, train_clips=9, test_clips=3, seed=2, workers=0)


def test_equal_seeds_give_equal_clips(tmp_path):
    for name in ("a", "b"):
        demo.write_demo(tmp_path / name, 2, 1, seed=5, workers=0)
    for path in sorted((tmp_path / "a").rglob("*.mp4")):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()


def test_codec_selection_hits_the_digit(tmp_path):
    """Of the patches after the first frame, at least twice as many touch the digit's box as of
    random ones: the codec selection follows what moves against the camera."""
    demo.write_demo(tmp_path, train_clips=24, test_clips=1, seed=0, workers=0)
    boxes = json.loads((tmp_path / "boxes.json").read_text())
    size, patch = 112, 14
    chosen, random = [], []
    for path, box_T4 in boxes.items():
        clip = sample_clip(tmp_path / path, 24, size, patch)
        times, h, w = select(clip, "codec", 128)[0].positions.T
        frame = clip.frame_ids_M[np.searchsorted(slot_times(len(clip)), times)]
        box = np.array(box_T4) * size / demo_scene.SIDE

        def touches(t, h, w, box=box):
            left, top, right, bottom = box[t].T
            across = (w * patch < right) & ((w + 1) * patch > left)
            return across & (h * patch < bottom) & ((h + 1) * patch > top)

        later = frame > 0
        chosen.append(touches(frame[later], h[later], w[later]).mean())
        every = [axis.ravel() for axis in np.mgrid[1 : demo.FRAMES, 0:8, 0:8]]
        random.append(touches(*every).mean())
    assert np.mean(chosen) > 2 * np.mean(random)


def test_stills_are_the_middle_frames_of_the_training_clips(tmp_path):
    demo.write_demo(tmp_path, 3, 1, stills=True)
    stills = sorted((tmp_path / "stills").iterdir())
    assert [still.name for still in stills] == ["0000.jpg", "0001.jpg", "0002.jpg"]
    frames, _ = demo.render(demo.ClipPlan("train", 1, 0, tmp_path))
    picture = np.asarray(Image.open(stills[1]), np.float64)
    assert np.abs(picture - frames[demo.FRAMES // 2]).mean() < 3
    assert not demo.write_demo(tmp_path, 3, 1, stills=True)
    with pytest.raises(ValueError, match="holds demo data made with"):
        demo.write_demo(tmp_path, 3, 1)
