from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecvit.codec import MediaError
from codecvit.codec.clip import sample_clip
from codecvit.codec.view import View


@pytest.mark.parametrize(
    ("geometry", "height", "width", "expected"),
    [
        ("crop", 360, 640, (224, 224, 224, 398)),
        ("crop", 640, 360, (224, 224, 398, 224)),
        ("crop", 50, 50, (224, 224, 224, 224)),
        ("square", 360, 640, (224, 224, 126, 224)),
        ("square", 640, 360, (224, 224, 224, 126)),
        ("fit", 360, 640, (126, 224, 126, 224)),
        ("fit", 640, 361, (224, 126, 224, 126)),
        ("fit", 10, 640, (14, 224, 14, 224)),
        ("squash", 10, 640, (224, 224, 224, 224)),
    ],
)
def test_sizes(geometry, height, width, expected):
    place = View(geometry, 224, 14).place(height, width)
    assert (place.height, place.width, place.scaled_height, place.scaled_width) == expected


def test_published_letterbox():
    """A portrait of 360 x 640 in 576: 324 columns from 126 on, whole patches 8 to 27."""
    place = View("square", 576, 16).place(640, 360)
    assert (place.columns, place.rows) == (slice(126, 450), slice(0, 576))
    assert place.patches(16, whole=True) == (slice(0, 36), slice(8, 28))
    assert place.patches(16, whole=False) == (slice(0, 36), slice(7, 29))


@given(
    st.sampled_from(["crop", "fit", "square", "squash"]),
    st.integers(2, 3000),
    st.integers(2, 3000),
    st.sampled_from([(224, 14), (576, 16), (48, 16)]),
)
def test_every_view_is_whole_patches_with_a_picture(geometry, height, width, sizes):
    size, patch = sizes
    place = View(geometry, size, patch).place(height, width)
    assert place.height % patch == 0
    assert place.width % patch == 0
    assert max(place.height, place.width) == size
    for whole in (True, False):
        for found, side in zip(
            place.patches(patch, whole), (place.height, place.width), strict=True
        ):
            assert 0 <= found.start <= found.stop <= side // patch
    rows, columns = place.patches(patch, whole=False)
    assert rows.start < rows.stop
    assert columns.start < columns.stop
    if geometry == "crop":  # the picture covers the view
        assert (place.top, place.left) == (0, 0)
        assert min(place.scaled_height, place.scaled_width) == size
    else:  # the view holds the whole picture
        assert place.cut == (0, 0)


def _stripes():
    """Red, green and blue thirds from left to right."""
    frames = np.zeros((3, 48, 144, 3), np.uint8)
    for i in range(3):
        frames[:, :, 48 * i : 48 * (i + 1), i] = 255
    return frames


def test_a_crop_is_cut_at_the_place_that_is_asked_for(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", _stripes())
    for third, cut_at in enumerate((0, 0.5, 1)):
        rgb = sample_clip(path, size=48, patch=16, cut_at=cut_at).rgb()
        assert (rgb[:, 4:-4, 4:-4].argmax(axis=-1) == third).all()
    upright = write_video(tmp_path / "b.mp4", _stripes().swapaxes(1, 2))
    rgb = sample_clip(upright, size=48, patch=16, cut_at=1).rgb()
    assert (rgb[:, 4:-4, 4:-4].argmax(axis=-1) == 2).all()
    with pytest.raises(ValueError, match="cut_at = 1.5 must lie in 0..1"):
        sample_clip(path, cut_at=1.5)
    with pytest.raises(ValueError, match="be 0.5 unless geometry = 'crop'"):
        sample_clip(path, geometry="fit", cut_at=0)


def test_square_letterboxes_in_black(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", _stripes())
    clip = sample_clip(path, size=96, patch=16, geometry="square")
    rgb = clip.rgb()
    assert rgb.shape == (3, 96, 96, 3)
    assert (clip.placement.rows, clip.placement.columns) == (slice(32, 64), slice(0, 96))
    assert not rgb[:, :32].any()
    assert not rgb[:, 64:].any()
    for third in range(3):
        inside = rgb[:, 36:60, 32 * third + 4 : 32 * third + 28]
        assert (inside.argmax(axis=-1) == third).all()
    np.testing.assert_array_equal(clip.exists_RC, np.ones((6, 6), bool))
    assert (clip.scores_MRC[:, [0, 1, 4, 5]] == -1).all()
    assert (clip.scores_MRC[:, 2:4] >= 0).all()


def test_fit_keeps_all_of_the_picture(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", _stripes())
    rgb = sample_clip(path, size=96, patch=16, geometry="fit").rgb()
    assert rgb.shape == (3, 32, 96, 3)
    for third in range(3):
        assert (rgb[:, 4:28, 32 * third + 4 : 32 * third + 28].argmax(axis=-1) == third).all()


@pytest.mark.parametrize("geometry", ["crop", "fit", "square"])
def test_a_recorded_turn_swaps_the_sides(media, geometry):
    clip = sample_clip(media / "rotated_90_568x320.mov", size=224, geometry=geometry)
    height, width = clip.luma_MHW.shape[1:]
    assert (height, width) == {"fit": (224, 126)}.get(geometry, (224, 224))
    place = clip.placement
    if geometry == "square":
        assert place.rows == slice(0, 224)
        assert place.columns == slice(49, 175)
        assert not clip.rgb()[:, :, :49].any()
        assert not clip.rgb()[:, :, 175:].any()
    upright = sample_clip(media / "rotated_90_568x320.mov", size=224, geometry="crop").rgb()[0]
    assert upright.std() > 10


def test_centre_is_the_middle_square_of_the_picture(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", _stripes())
    for geometry in ("square", "fit"):
        rgb = sample_clip(path, size=96, patch=16, geometry=geometry).centre().rgb()
        assert rgb.shape == (3, 32, 32, 3)
        assert (rgb[:, 3:-3, 3:-3].argmax(axis=-1) == 1).all()  # green alone


def test_strips_without_end_are_refused(tmp_path, write_video, texture):
    path = write_video(tmp_path / "a.mp4", texture(0, 16, 4000)[None].repeat(2, axis=0))
    with pytest.raises(MediaError, match="4000 x 16 pixels, too long for a centre crop"):
        sample_clip(path)
    assert sample_clip(path, geometry="fit").luma_MHW.shape == (2, 14, 224)
