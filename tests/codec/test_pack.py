from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

import codecvit
from codecvit.codec import MediaError, SelectionConfig, pack_video
from codecvit.codec.clip import sample_clip
from codecvit.codec.selection import select as select_all
from codecvit.sequence import slot_times


def select(clip, *options):
    (sequence,) = select_all(clip, *options)
    return sequence


def test_every_healthy_clip_in_every_mode(healthy):
    for path in healthy:
        clip = sample_clip(path)
        frames = len(clip)
        for mode in ("codec", "frames", "collage"):
            sequence = select(clip, mode, 1000)
            whole = min(3, frames)
            expected = {"codec": min(1000, frames * 256)}.get(mode, whole * 256)
            assert len(sequence) == expected, (path.name, mode)
            blank = path.name == "unordered_pts_50x50.mov"  # a white picture
            assert blank or sequence.patches.std() > 5, (path.name, mode)
        slots = np.unique(select(clip, "codec", 64 * 256).positions[:, 0])
        np.testing.assert_array_equal(slots, slot_times(frames))


def test_chosen_patches_follow_what_moves_on_a_real_clip(media):
    """The camera stands still; a child and a fire move, all in the lower middle of the picture."""
    path = media / "still_camera_h264_640x360.mp4"
    sequence = pack_video(path, budget=256 + 600, start=1)  # a title fades before
    t, h, w = sequence.positions[256:].T
    assert ((h >= 6) & (h < 14) & (w >= 4) & (w < 11)).mean() > 0.9  # of 22 % of the picture


def test_pack_video_is_sampling_and_selection(tmp_path, write_video, scene):
    path = write_video(tmp_path / "a.mp4", scene("left", frames=20)[0])
    config = SelectionConfig(scale="frame")
    packed = pack_video(path, "codec", 12, 200, 112, 14, start=0.1, end=0.7, config=config)
    clip = sample_clip(path, 12, 112, 14, 0.1, 0.7, config=config)
    selected = select(clip, "codec", 200)
    assert packed.patches.tobytes() == selected.patches.tobytes()
    assert packed.positions.tobytes() == selected.positions.tobytes()
    assert clip.seconds_M.min() >= 0.1
    assert clip.seconds_M.max() < 0.7
    np.testing.assert_allclose(clip.seconds_M, clip.frame_ids_M / 25, atol=1e-6)


def test_same_file_and_options_give_the_same_bytes_in_another_process(tmp_path, write_video, scene):
    path = write_video(tmp_path / "a.mp4", scene("grow", frames=20)[0])
    code = (
        "import hashlib, sys, codecvit;"
        "s = codecvit.pack_video(sys.argv[1], size=112, budget=300);"
        "print(hashlib.sha256(s.patches.tobytes() + s.positions.tobytes()).hexdigest());"
        "assert 'jax' not in sys.modules and 'torch' not in sys.modules"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    here = codecvit.pack_video(path, size=112, budget=300)
    digest = hashlib.sha256(here.patches.tobytes() + here.positions.tobytes()).hexdigest()
    assert there.stdout.strip() == digest


def test_fewer_frames_than_samples(media):
    for mode, patches in (("codec", 3 * 256), ("frames", 3 * 256), ("collage", 3 * 256)):
        sequence = pack_video(media / "rotated_90_568x320.mov", mode)
        assert len(sequence) == patches
    assert np.unique(pack_video(media / "rotated_90_568x320.mov").positions[:, 0]).tolist() == [
        0,
        32,
        63,
    ]


def test_one_frame(tmp_path, write_video, texture):
    path = write_video(tmp_path / "a.mp4", texture(0, 64, 64)[None])
    for mode in ("codec", "frames", "collage"):
        sequence = pack_video(path, mode, size=56)
        assert len(sequence) == 16
        assert not sequence.positions[:, 0].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 65}, "num_frames = 65 must lie in 1..64"),
        ({"num_frames": 0}, "num_frames = 0"),
        ({"size": 225}, "size = 225 must be a multiple of patch = 14, for example 224"),
        ({"size": 0}, "size = 0"),
        ({"patch": 0}, "patch = 0"),
        ({"budget": 255}, "budget = 255 is below one frame of 256 patches"),
        ({"mode": "best"}, "mode = 'best'"),
        ({"geometry": "pad"}, "geometry = 'pad' must be one of crop, fit, square"),
        ({"sampling": "key"}, "sampling = 'key' must be one of index, time"),
        ({"config": SelectionConfig(block=2), "size": 210}, "block = 2 does not divide"),
        ({"config": SelectionConfig(policy="groups")}, "call pack_groups"),
        ({"start": 3, "end": 2}, "start = 3 must be before end = 2"),
    ],
)
def test_options_are_checked_before_the_file_is_opened(options, message):
    with pytest.raises(ValueError, match=message) as error:
        pack_video("missing.mp4", **options)
    assert not isinstance(error.value, MediaError)


def test_missing_file_is_named():
    with pytest.raises(MediaError, match="missing.mp4"):
        pack_video("missing.mp4")
