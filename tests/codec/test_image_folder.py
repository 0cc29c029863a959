from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from codecvit.codec import MediaError, SelectionConfig, pack_video
from codecvit.codec.clip import sample_clip
from codecvit.codec.image_folder import is_image_folder


@pytest.fixture
def folder(tmp_path, scene):
    """Twelve frames 0, 1, ..., 11, numbered without leading zeros: text order is not theirs."""
    place = tmp_path / "frames"
    place.mkdir()
    for i, frame in enumerate(scene("right", frames=12)[0]):
        Image.fromarray(frame).save(place / f"img_{i + 1}.png")
    (place / "notes.md").write_text("not a frame")
    (place / "fps.txt").write_text("12.5\n")
    return place


def test_frames_come_by_number_at_the_stated_rate(folder, scene):
    assert is_image_folder(folder)
    clip = sample_clip(folder, 5, 112)
    assert clip.frame_ids_M.tolist() == [0, 2, 5, 8, 11]
    np.testing.assert_allclose(clip.seconds_M, clip.frame_ids_M / 12.5)
    expected = scene("right", frames=12)[0][[0, 2, 5, 8, 11]]
    assert np.abs(clip.rgb().astype(int) - expected).mean() < 2
    assert len(pack_video(folder, size=112, budget=100, start=0.2, end=0.5)) == 100


def test_a_missing_number_is_a_gap_in_time(folder):
    (folder / "img_3.png").unlink()
    clip = sample_clip(folder, 64, 112)
    assert len(clip) == 11
    assert np.diff(clip.seconds_M).tolist() == pytest.approx([0.08, 0.16] + [0.08] * 8)


def test_the_rate_may_stand_in_the_folder_above(folder):
    (folder / "fps.txt").rename(folder.parent / "fps.txt")
    assert is_image_folder(folder)
    assert sample_clip(folder, 2, 112).seconds_M[-1] == pytest.approx(11 / 12.5)


def test_pictures_may_differ_in_size_and_mode(folder):
    picture = Image.open(folder / "img_4.png")
    picture.convert("L").resize((300, 300)).save(folder / "img_4.png")
    for geometry in ("crop", "fit", "square"):
        assert len(sample_clip(folder, 12, 112, geometry=geometry)) == 12


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda place: (place / "fps.txt").unlink(), "needs its frame rate in fps.txt"),
        (lambda place: (place / "fps.txt").write_text("fast"), "fps.txt: holds 'fast'"),
        (lambda place: (place / "fps.txt").write_text("0"), "holds '0', not a frame rate above 0"),
        (lambda place: (place / "b1.png").write_bytes(b""), "two images of number 1"),
        (lambda place: (place / "img_12.png").write_bytes(b"no"), "img_12.png: cannot be read"),
        (lambda place: [p.unlink() for p in place.glob("*.png")], "without numbered images"),
    ],
)
def test_what_is_wrong_is_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(MediaError, match=message):
        sample_clip(folder, 12, 112)


def test_there_are_no_coded_vectors(folder):
    with pytest.raises(MediaError, match="folder of images.*choose signal = estimate"):
        sample_clip(folder, 4, 112, config=SelectionConfig(signal="bitstream"))
