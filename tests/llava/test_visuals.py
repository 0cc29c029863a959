"""Images, mosaics and videos as patches: equal however they were made, and nothing mixed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from codecvit.codec.config import SelectionConfig
from codecvit.codec.errors import MediaError
from codecvit.codec.llava.packs import PackError, PackTask, make_pack
from codecvit.llava.data.assets import PUBLISHED, AssetMismatch, mosaic_visual, open_pack, row_pack
from codecvit.llava.data.patch_resize import bicubic_weights, resize_patches
from codecvit.llava.data.visuals import ImageRule, Visual, image_visual, video_visual

from .made import OPTIONS, moving, texture, write_image, write_video

LOSSLESS = dataclasses.replace(OPTIONS, lossless=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", moving())


def pack_of(folder, clip, options=LOSSLESS):
    """The pack of a clip, as `llava data` makes it; its folder."""
    make_pack(options, PackTask(str(clip), clip.name, str(folder), "clip"))
    return str(folder)


@pytest.fixture
def pack(tmp_path, clip):
    return pack_of(tmp_path / "pack", clip)


def assert_equal(a, b):
    for name in ("patches", "positions", "groups", "seconds"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, err_msg=name)
    assert a.grid == b.grid


VARIANTS = {
    "square": LOSSLESS,
    "jpeg": OPTIONS,
    "jpeg, exclude": dataclasses.replace(OPTIONS, config=SelectionConfig(padding="exclude")),
    "exclude": dataclasses.replace(LOSSLESS, config=SelectionConfig(padding="exclude")),
    "repeat": dataclasses.replace(LOSSLESS, config=SelectionConfig(padding="repeat")),
    "fit": dataclasses.replace(LOSSLESS, geometry="fit"),
    "patch 14": dataclasses.replace(LOSSLESS, size=56, patch=14),
    "few frames": dataclasses.replace(LOSSLESS, num_frames=2),
    "by time": dataclasses.replace(LOSSLESS, sampling="time", num_frames=7),
}


@pytest.mark.parametrize("patch", [None, 14])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_pack_and_packing_on_the_fly_are_equal(tmp_path, clip, name, patch):
    options = VARIANTS[name]
    stored = mosaic_visual(pack_of(tmp_path / "pack", clip, options), patch)
    assert_equal(stored, video_visual(clip, options, patch))
    assert stored.patch == (patch or options.patch)
    assert stored.num_groups == min(options.num_images, options.num_frames)


def test_real_clips_too(tmp_path, media):
    for name in ("unordered_pts_50x50.mov", "action_mpeg4_320x240.avi"):
        stored = mosaic_visual(pack_of(tmp_path / name, media / name), 14)
        assert_equal(stored, video_visual(media / name, LOSSLESS, 14))


def test_jpeg_changes_pixels_a_little_and_no_places(clip):
    jpeg, png = video_visual(clip, OPTIONS), video_visual(clip, LOSSLESS)
    np.testing.assert_array_equal(jpeg.positions, png.positions)
    assert 0 < np.abs(jpeg.patches.astype(int) - png.patches).mean() < 3


def test_patches_are_those_of_their_places(clip):
    """The first mosaic is the first frame."""
    visual = video_visual(clip, LOSSLESS)
    first = visual.patches[visual.groups == 0].reshape(4, 4, 16, 16, 3).swapaxes(1, 2)
    picture = first.reshape(64, 64, 3)[8:56]
    assert np.abs(picture.astype(int) - moving()[0]).mean() < 12  # MPEG-4, chroma at a quarter
    assert (visual.positions[visual.groups == 0, 0] == 0).all()


# Resizing


@pytest.mark.parametrize(("old", "new"), [(16, 14), (16, 4), (14, 16), (8, 16), (16, 16), (16, 1)])
def test_each_patch_is_resized_alone_and_as_pillow_would(old, new):
    # Within 64..191 nothing overshoots: Pillow cuts off between its two passes.
    patches = np.stack([texture(seed, old, old) // 2 + 64 for seed in range(48)])
    resized = resize_patches(patches, new)
    assert resized.shape == (48, new, new, 3) and resized.dtype == np.uint8
    one_by_one = [
        np.asarray(Image.fromarray(p).resize((new, new), Image.Resampling.BICUBIC)) for p in patches
    ]
    assert np.abs(resized.astype(int) - np.stack(one_by_one)).max() <= 1  # Pillow rounds twice
    other = patches.copy()
    other[7] = 255 - other[7]
    changed = (resize_patches(other, new) != resized).any(axis=(1, 2, 3))
    assert changed.tolist() == [row == 7 for row in range(48)]


def test_resizing_keeps_flat_patches_and_their_mean():
    flat = np.full((3, 16, 16, 3), [[[[0]]], [[[100]]], [[[255]]]], np.uint8)
    np.testing.assert_array_equal(resize_patches(flat, 14), flat[:, :14, :14])
    np.testing.assert_allclose(bicubic_weights(16, 14).sum(axis=1), 1, atol=1e-6)


def test_many_patches_are_resized_as_few_are():
    patches = np.random.default_rng(1).integers(0, 256, (2500, 6, 6, 3), np.uint8)
    np.testing.assert_array_equal(
        resize_patches(patches, 5)[2040:2060], resize_patches(patches[2040:2060], 5)
    )


def test_a_changed_cell_of_a_mosaic_changes_its_patch_alone(pack, tmp_path):
    before = mosaic_visual(pack, 14)
    path = f"{pack}/{open_pack(pack).images[1]}"
    picture = np.array(Image.open(path))
    picture[16:32, 32:48] = 255 - picture[16:32, 32:48]
    Image.fromarray(picture).save(path)
    (tmp_path / "pack" / "meta.json").unlink()  # PNG files have other sizes now
    after = mosaic_visual(pack, 14)
    changed = (after.patches != before.patches).any(axis=(1, 2, 3))
    assert np.flatnonzero(changed).tolist() == [16 + 1 * 4 + 2]


# Times


def test_times_are_those_the_file_states_not_those_of_a_frame_rate(tmp_path):
    """Ten quick frames, a pause, ten slow ones: a rate would place them evenly."""
    seconds = np.concatenate([np.arange(10) * 0.04, 9 + np.arange(10) * 0.5])
    clip = write_video(tmp_path / "vfr.mkv", moving(), seconds)
    options = dataclasses.replace(LOSSLESS, num_frames=20, num_images=4)
    visual = video_visual(clip, options)
    slots = np.rint(np.arange(20) * 63 / 19).astype(int)
    sample = np.searchsorted(slots, visual.positions[:, 0])
    for group in range(visual.num_groups):
        times = seconds[sample[visual.groups == group]]
        np.testing.assert_allclose(visual.seconds[group], [times.min(), times.max()], atol=1e-6)
    evenly = sample / 19 * seconds[-1]
    assert np.abs(visual.seconds[1, 1] - evenly[visual.groups == 1].max()) > 0.5
    assert_equal(mosaic_visual(pack_of(tmp_path / "pack", clip, options)), visual)


def test_groups_follow_each_other_in_time(clip):
    visual = video_visual(clip, LOSSLESS)
    assert visual.seconds[0].tolist() == [0, 0]  # the first frame fills the first mosaic
    assert (visual.seconds[:, 0] <= visual.seconds[:, 1]).all()
    assert (visual.seconds[1:, 0] >= visual.seconds[:-1, 1]).all()


# Packs


def test_published_packs_are_read_without_times(pack, tmp_path):
    ours = mosaic_visual(pack)
    meta = {"cfg": {"patch_size": 16}, "debug": {}}  # that of an evaluation asset; others have none
    (tmp_path / "pack" / "meta.json").write_text(json.dumps(meta))
    theirs = mosaic_visual(pack)
    assert open_pack(pack).config_hash == PUBLISHED and theirs.seconds is None
    assert_equal(dataclasses.replace(theirs, seconds=ours.seconds), ours)


def test_published_packs_without_full_mosaics_are_refused(tmp_path, clip):
    pack = pack_of(tmp_path / "pack", clip, VARIANTS["exclude"])
    (tmp_path / "pack" / "meta.json").unlink()
    with pytest.raises(PackError, match="24 positions do not fill 3 square mosaics of 64 pixels"):
        mosaic_visual(pack)


def test_other_options_are_named(tmp_path, clip, pack):
    other = pack_of(tmp_path / "other", clip, VARIANTS["exclude"])
    open_pack(pack).require_hash(LOSSLESS.hash)
    with pytest.raises(AssetMismatch) as error:
        open_pack(other).require_hash(LOSSLESS.hash)
    assert LOSSLESS.hash in str(error.value) and VARIANTS["exclude"].hash in str(error.value)


def resave(change):
    def damage(folder):
        positions = np.load(folder / "positions_thw.npy")
        np.save(folder / "positions_thw.npy", change(positions))
        meta = json.loads((folder / "meta.json").read_text())
        meta["files"]["positions_thw.npy"] = (folder / "positions_thw.npy").stat().st_size
        (folder / "meta.json").write_text(json.dumps(meta))

    return damage


def set_first(value):
    def change(positions):
        positions[-1] = value
        return positions

    return change


def edit_meta(**fields):
    def damage(folder):
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | fields))

    return damage


DAMAGE = {
    "no positions": (lambda f: (f / "positions_thw.npy").unlink(), "positions_thw.npy"),
    "a mosaic less": (lambda f: (f / "clip_002.png").unlink(), "clip_002.png is missing"),
    "a cut mosaic": (lambda f: (f / "clip_002.png").write_bytes(b"x"), "has 1 bytes instead of"),
    "fewer positions": (resave(lambda p: p[:-1]), "does not say|47 positions"),
    "a mosaic's positions": (resave(lambda p: p[:32]), "32 positions for 3 mosaics of"),
    "other numbers": (resave(lambda p: p.astype(np.int64)), "int64 .* instead of int32"),
    "outside": (resave(set_first([63, 4, 0])), "outside of 64 x 4 x 4"),
    "negative": (resave(set_first([-1, 0, 0])), "outside of 64 x 4 x 4"),
    "no sample's time": (resave(set_first([62, 0, 0])), "none of its 16 samples"),
    "another size": (edit_meta(rows=5), r"\(64, 64\) pixels .* instead of \(64, 80\)"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(pack, tmp_path, name):
    damage, message = DAMAGE[name]
    damage(tmp_path / "pack")
    with pytest.raises(PackError, match=message):
        mosaic_visual(pack)


def test_the_images_of_a_row_are_those_of_the_pack(pack):
    images = [f"{pack}/clip_{i:03d}.png" for i in range(3)]
    assert row_pack(f"{pack}/positions_thw.npy", images).images == tuple(i[-12:] for i in images)
    for wrong in (images[:2], images[::-1], ["other.png", *images[1:]]):
        with pytest.raises(PackError, match=r"images of the row are not the 3 mosaics"):
            row_pack(f"{pack}/positions_thw.npy", wrong)


def test_a_missing_pack_and_a_missing_video(tmp_path):
    with pytest.raises(PackError, match="lacks positions_thw.npy"):
        mosaic_visual(str(tmp_path / "nowhere"))
    with pytest.raises(MediaError, match="does not exist|No such file"):
        video_visual(tmp_path / "nowhere.mp4", OPTIONS)


# Images


def untile(visual):
    rows, columns = visual.grid
    cells = visual.patches.reshape(rows, columns, visual.patch, visual.patch, 3).swapaxes(1, 2)
    return cells.reshape(rows * visual.patch, columns * visual.patch, 3)


def test_an_image_of_whole_patches_is_kept_as_it_is(tmp_path):
    path = write_image(tmp_path / "a.png", 0, 28, 56)
    visual = image_visual(path, ImageRule(), 14)
    np.testing.assert_array_equal(untile(visual), texture(0, 28, 56))
    assert visual.positions.tolist() == [[0, h, w] for h in range(2) for w in range(4)]
    assert visual.seconds is None and visual.num_groups == 1 and visual.grid == (2, 4)


def test_image_sizes(tmp_path):
    path = write_image(tmp_path / "a.png", 0, 30, 76)
    assert image_visual(path, ImageRule(), 14).grid == (2, 5)
    assert image_visual(path, ImageRule(56), 14).grid == (4, 4)
    assert image_visual(path, ImageRule(max_pixels=3 * 14**2), 14).grid == (1, 3)
    with pytest.raises(ValueError, match="size = 60 must be a multiple of patch = 14"):
        image_visual(path, ImageRule(60), 14)
    with pytest.raises(ValueError, match="max_pixels = 100 is below one patch of 14"):
        image_visual(path, ImageRule(max_pixels=100), 14)
    with pytest.raises(ValueError, match="max_pixels = 0"):
        ImageRule(max_pixels=0)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 20000),
    st.integers(1, 20000),
    st.sampled_from([4, 14, 16]),
    st.integers(256, 10**7),
)
def test_native_images_keep_their_aspect_below_the_cap(height, width, patch, cap):
    rows, columns = ImageRule(max_pixels=cap).grid(height, width, patch)
    assert rows >= 1 and columns >= 1 and rows * columns * patch**2 <= cap
    scale = min(1, (cap / (height * width)) ** 0.5)
    if (
        min(rows, columns) > 1
    ):  # at the cap, a long side gives way by as much as the short one needs
        assert abs(rows * patch - height * scale) <= patch * (2 + rows / columns)
        assert abs(columns * patch - width * scale) <= patch * (2 + columns / rows)


def test_turned_and_grey_images_are_upright_rgb(tmp_path):
    grey = Image.fromarray(texture(0, 28, 56)[..., 0])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    grey.save(tmp_path / "a.png", exif=exif)
    assert image_visual(tmp_path / "a.png", ImageRule(), 14).grid == (4, 2)


def test_damaged_and_missing_images(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(MediaError, match="a.jpg: cannot be read as an image"):
        image_visual(tmp_path / "a.jpg", ImageRule(), 14)
    with pytest.raises(FileNotFoundError):
        image_visual(tmp_path / "b.jpg", ImageRule(), 14)


# The visual itself


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patches": np.zeros((4, 2, 2, 3), np.float32)}, "patches must be uint8"),
        ({"patches": np.zeros((0, 2, 2, 3), np.uint8)}, "L > 0"),
        ({"positions": np.zeros((3, 3), np.int32)}, r"positions must be int32 \[4, 3\]"),
        ({"positions": np.full((4, 3), 2, np.int32)}, "outside of the grid of 2 x 2"),
        ({"groups": np.array([0, 1, 0, 1], np.int32)}, "groups"),
        ({"groups": np.array([0, 0, 2, 2], np.int32)}, "without gaps"),
        ({"groups": np.array([1, 1, 2, 2], np.int32)}, None),
        ({"seconds": np.zeros((3, 2))}, r"seconds must be \[2, 2\]"),
    ],
)
def test_a_visual_whose_parts_do_not_fit_is_refused(change, message):
    parts = {
        "patches": np.zeros((4, 2, 2, 3), np.uint8),
        "positions": np.zeros((4, 3), np.int32),
        "groups": np.array([0, 0, 1, 1], np.int32),
        "seconds": np.zeros((2, 2)),
        "grid": (2, 2),
    }
    Visual(**parts)
    with pytest.raises(ValueError, match=message):
        Visual(**parts | change)


def test_visuals_mixtures_and_batches_need_no_torch():
    code = """
import sys
from codecvit.llava.data import mixture, row_visuals, sampler
assert not {"jax", "torch"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
