"""One decode for all encoders: which frames, at which shape, the same every time."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from codecvit.codec.errors import MediaError
from codecvit.llava.data.frame_visuals import FrameRule, shown_image
from codecvit.llava.data.visuals import ImageRule
from codecvit.llava.encoders import frames as frames_module
from codecvit.llava.encoders.frames import (
    Frames,
    frame_indices,
    picture_frames,
    shared_count,
    shared_frames,
)

from ..made import moving, write_image, write_video


@pytest.mark.parametrize(
    ("count", "frames", "expected"),
    [
        (1, 1, [0]),
        (1, 4, [0, 0, 0, 0]),
        (3, 1, [0]),
        (3, 4, [0, 0, 1, 2]),
        (3, 8, [0, 0, 0, 0, 1, 1, 1, 2]),
        (15, 8, [0, 2, 4, 6, 8, 10, 12, 14]),
        (15, 16, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]),
        (16, 16, [*range(16)]),
        (1000, 4, [0, 333, 666, 999]),
        (1000, 8, [0, 142, 285, 428, 570, 713, 856, 999]),
    ],
)
def test_indices_by_hand(count, frames, expected):
    assert frame_indices(count, frames).tolist() == expected


def test_indices_are_those_of_linspace():
    for frames in (1, 2, 4, 8, 16, 32):
        for count in (*range(1, 70), 239, 1000, 4321):
            wanted = np.linspace(0, count - 1, frames).astype(int)
            assert np.array_equal(frame_indices(count, frames), wanted)
    for count, frames in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            frame_indices(count, frames)


def test_counts_divide_the_largest_or_are_refused():
    assert shared_count([16, 16, 32, 8]) == 32
    assert shared_count([5]) == 5
    with pytest.raises(ValueError, match=r"\[8, 16, 24\]: 16 does not divide 24"):
        shared_count([8, 16, 24])  # though 8 divides all of them
    for counts in ([], [4, 0]):
        with pytest.raises(ValueError, match="must be positive"):
            shared_count(counts)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A video of 40 frames that show their number as six bars, black or white."""
    bits = np.arange(40)[:, None] >> np.arange(6) & 1
    rows = np.repeat(bits.astype(np.uint8) * 255, 8, axis=1)
    clip = np.broadcast_to(rows[:, None, :, None], (40, 32, 48, 3))
    return write_video(tmp_path_factory.mktemp("videos") / "numbered.avi", clip)


def shown(frames):
    """Number that each frame of `numbered` shows."""
    size = frames.pixels.shape[1]
    centres = ((np.arange(6) + 0.5) * size / 6).astype(int)
    bits = frames.pixels[:, size // 2, centres, 1] > 128
    return (bits @ (1 << np.arange(6))).tolist()


def test_frames_are_the_ones_that_were_asked_for(numbered):
    found = shared_frames(numbered, 8, 24)
    assert found.pixels.shape == (8, 24, 24, 3)
    assert shown(found) == frame_indices(40, 8).tolist()
    np.testing.assert_allclose(found.seconds, frame_indices(40, 8) / 25, atol=1e-6)
    # A short video repeats frames: as many come out as encoders expect.
    short = shared_frames(numbered, 8, 24, start=0.4, end=0.52)
    assert shown(short) == [10, 10, 10, 10, 11, 11, 11, 12]
    assert short.seconds.tolist() == [0.4] * 4 + [0.44] * 3 + [0.48]


def test_strides_of_shared_frames_see_the_same_moments(numbered):
    """Every k-th of 32 frames is what 32/k frames out of the same span would be, to one frame."""
    shared = shown(shared_frames(numbered, 32, 24))
    assert shared[:: 32 // 16] == [shared[i] for i in range(0, 32, 2)]
    assert max(abs(a - b) for a, b in zip(shared[::2], shared[1::2], strict=True)) <= 2


def test_a_video_is_decoded_once_and_always_alike(numbered, monkeypatch):
    decoded = []
    real = frames_module.decode_frames

    def counting(*args):
        decoded.append(args)
        return real(*args)

    monkeypatch.setattr(frames_module, "decode_frames", counting)
    first = shared_frames(numbered, 32, 24)
    assert len(decoded) == 1
    again = shared_frames(numbered, 32, 24)
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.seconds, again.seconds)


def stripes(height=32, width=96):
    """Red, green, blue thirds from left to right."""
    picture = np.zeros((height, width, 3), np.uint8)
    for third in range(3):
        picture[:, third * width // 3 : (third + 1) * width // 3, third] = 255
    return picture


def colours(pixels_SS3):
    """Which of the three colours are seen."""
    return set(pixels_SS3[4:-4, 4:-4].reshape(-1, 3).argmax(1).tolist())


def test_squash_keeps_all_and_crop_the_middle(tmp_path):
    video = write_video(tmp_path / "v.avi", np.repeat(stripes()[None], 4, 0))
    for resize, seen in (("squash", {0, 1, 2}), ("crop", {1})):
        for found in (
            shared_frames(video, 4, 24, resize),
            picture_frames(Image.fromarray(stripes()), 24, resize),
        ):
            assert found.pixels.shape[1:] == (24, 24, 3)
            assert colours(found.pixels[0]) == seen
    with pytest.raises(ValueError, match="resize = 'fit' must be one of"):
        shared_frames(video, 4, 24, "fit")
    with pytest.raises(ValueError, match="resize = '' must be one of"):
        picture_frames(Image.fromarray(stripes()), 24, "")


def test_a_folder_of_images_is_a_video(tmp_path):
    for number, pixels in enumerate(moving(frames=6)):
        Image.fromarray(pixels).save(tmp_path / f"{number:03}.png")
    (tmp_path / "fps.txt").write_text("2\n")
    found = shared_frames(tmp_path, 3, 48, "squash")
    assert found.seconds.tolist() == [0.0, 1.0, 2.5]
    wanted = np.asarray(Image.fromarray(moving(frames=6)[5]).resize((48, 48), 3), float)
    assert np.abs(found.pixels[2] - wanted).mean() < 6


def test_an_image_is_one_frame_without_time(tmp_path):
    path = write_image(tmp_path / "i.png", 0, 30, 50)
    found = shown_image(path, ImageRule(), None, FrameRule(4, 16, "squash")).frames
    assert (len(found), found.seconds) == (1, None)


def test_what_cannot_be_decoded_is_an_error(tmp_path, numbered):
    with pytest.raises(MediaError, match="cannot be opened"):
        shared_frames(tmp_path / "missing.mp4", 4, 16)
    with pytest.raises(MediaError, match="has no frame between"):
        shared_frames(numbered, 4, 16, start=99.0)
    (tmp_path / "i.png").write_bytes(b"no image")
    with pytest.raises(MediaError, match="cannot be read as an image"):
        shown_image(tmp_path / "i.png", ImageRule(), None, FrameRule(4, 16, "squash"))


def test_a_turned_video_is_upright(media):
    """A phone's recording of 320 x 568: seen whole, with the sky above."""
    found = shared_frames(media / "rotated_90_568x320.mov", 1, 64)
    crop = shared_frames(media / "rotated_90_568x320.mov", 1, 64, "crop")
    # Squashed, it is the whole height; cropped, the middle of it at nearly twice the scale.
    middle = np.asarray(
        Image.fromarray(found.pixels[0][14:50]).resize((64, 64), Image.Resampling.BICUBIC), float
    )
    error = np.abs(middle - crop.pixels[0]).mean()
    assert error < np.abs(middle.transpose(1, 0, 2) - crop.pixels[0]).mean() / 2


def test_frames_check_themselves():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    assert len(Frames(pixels, np.zeros(2))) == 2
    for wrong in (pixels.astype(float), pixels[:0], pixels[:, :3], pixels[0], pixels[..., :2]):
        with pytest.raises(ValueError, match="pixels must be uint8"):
            Frames(wrong)
    with pytest.raises(ValueError, match=r"seconds must be \[2\]"):
        Frames(pixels, np.zeros(3))


def test_frames_are_read_without_torch():
    code = (
        "import sys, codecvit.llava.encoders.frames\n"
        "assert not {'torch', 'jax', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
