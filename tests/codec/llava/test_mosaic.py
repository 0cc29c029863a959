"""Mosaics show the chosen patches, and no cell leaks into another."""

from __future__ import annotations

import numpy as np
import pytest

from codecvit.codec.clip import sample_clip
from codecvit.codec.config import SelectionConfig
from codecvit.codec.llava.mosaic import (
    image_file,
    lay_out,
    mosaic_budget,
    mosaic_cells,
)
from codecvit.codec.llava.options import MosaicOptions
from codecvit.codec.selection import choose

from .helpers import cells_of, pixels


def selected(path, num_images=3, size=64, patch=16, num_frames=16, geometry="square", **config):
    config = SelectionConfig(**config)
    clip = sample_clip(path, num_frames, size, patch, geometry=geometry, config=config)
    return choose(clip, mosaic_budget(clip, num_images))


@pytest.mark.parametrize("geometry", ["square", "crop", "fit"])
def test_png_cells_are_the_patches_in_order(clips, geometry):
    selection = selected(clips / "a" / "clip.mp4", geometry=geometry)
    files = list(lay_out(selection, 3).files(png=True))
    cells = np.concatenate([cells_of(pixels(file), 16) for file in files])
    assert len(files) == 3
    np.testing.assert_array_equal(cells, selection.patches())
    np.testing.assert_array_equal(lay_out(selection, 3).positions_N3, selection.positions_L3)


def test_jpeg_cells_are_close_to_the_patches(clips, media):
    for path, size, limit in (
        (clips / "a" / "clip.mp4", 64, 2.5),
        (media / "people_h264_640x360.mp4", 576, 1.5),
    ):
        selection = selected(path, 8, size, num_frames=64)
        files = list(lay_out(selection, 8).files(MosaicOptions().png))
        assert all(file.startswith(b"\xff\xd8") for file in files)
        cells = np.concatenate([cells_of(pixels(file), 16) for file in files])
        error = np.abs(cells.astype(int) - selection.patches())
        assert error.mean() < limit
        assert error.mean(axis=(1, 2, 3)).max() < 6


def test_a_jpeg_cell_is_coded_apart(clips):
    """Replacing a cell changes no pixel of its neighbours, and alone it is coded the same."""
    mosaics = lay_out(selected(clips / "a" / "clip.mp4"), 3)
    picture = mosaics.rgb(0)
    changed = picture.copy()
    changed[16:32, 32:48] = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)

    before, after = (pixels(image_file(image, png=False)) for image in (picture, changed))
    differs = (before != after).any(axis=-1)
    assert differs[16:32, 32:48].mean() > 0.9
    differs[16:32, 32:48] = False
    assert not differs.any()

    alone = image_file(np.ascontiguousarray(picture[16:32, 32:48]), png=False)
    np.testing.assert_array_equal(pixels(alone), before[16:32, 32:48])


def test_jpeg_would_leak_between_cells_of_14_pixels_so_they_are_png(clips):
    selection = selected(clips / "a" / "clip.mp4", size=56, patch=14)
    files = list(lay_out(selection, 3).files(MosaicOptions(size=56, patch=14).png))
    assert all(file.startswith(b"\x89PNG") for file in files)
    cells = np.concatenate([cells_of(pixels(file), 14) for file in files])
    np.testing.assert_array_equal(cells, selection.patches())
    # The reason: a changed cell reaches into its neighbours.
    picture = lay_out(selection, 3).rgb(0)
    changed = picture.copy()
    changed[14:28, 14:28] = 255 - changed[14:28, 14:28]
    decoded = [pixels(image_file(image, png=False)) for image in (picture, changed)]
    differs = (decoded[0] != decoded[1]).any(axis=-1)
    differs[14:28, 14:28] = False
    assert differs.any()


def test_the_first_mosaic_is_the_first_frame_whole_or_ranked(clips):
    whole = selected(clips / "a" / "clip.mp4")
    np.testing.assert_array_equal(lay_out(whole, 3).rgb(0), whole.clip.rgb([0])[0])
    # Of 8 x 8 patches 16 are padding, which loses against any picture.
    ranked = selected(clips / "a" / "clip.mp4", 1, 128, first_frame="ranked")
    assert 16 <= (ranked.thw_L3[:, 0] > 0).sum() < len(ranked) == 64
    cells = cells_of(lay_out(ranked, 1).rgb(0), 16)
    np.testing.assert_array_equal(cells, ranked.patches())


def test_excluded_padding_leaves_black_edges_as_published(clips):
    selection = selected(clips / "b" / "clip.mp4", padding="exclude")  # 48 x 80: 64 high, 38 wide
    clip = selection.clip
    rows, columns = mosaic_cells(clip)
    assert (rows, columns) == (slice(0, 4), slice(1, 3))
    assert len(selection) == 3 * 8
    mosaics = lay_out(selection, 3)
    assert mosaics.count == 3
    for number in range(3):
        picture = mosaics.rgb(number)
        assert picture.shape == (64, 64, 3)
        assert not picture[:, :16].any() and not picture[:, 48:].any()
        cells = cells_of(np.ascontiguousarray(picture[:, 16:48]), 16)
        np.testing.assert_array_equal(cells, selection.patches()[number * 8 : number * 8 + 8])


def test_repeated_padding_fills_mosaics_evenly(clips):
    wide = selected(clips / "one.mp4", padding="repeat", size=128)
    mosaics = lay_out(wide, 3)
    exists = int(wide.clip.exists_RC.sum())
    assert mosaics.count == 1 and len(mosaics.thw_N3) == 64 and exists == mosaics.selected == 48
    rows, counts = np.unique(mosaics.thw_N3, axis=0, return_counts=True)
    assert len(rows) == exists and set(counts) == {1, 2}
    assert wide.clip.exists_RC[tuple(mosaics.thw_N3[:, 1:].T)].all()
    order = np.lexsort(mosaics.positions_N3.T[::-1])
    np.testing.assert_array_equal(order, np.arange(64))


@pytest.mark.parametrize(("name", "count"), [("one.mp4", 1), ("three.mp4", 3)])
def test_short_clips_give_a_mosaic_per_frame(clips, name, count):
    selection = selected(clips / name, num_images=8)
    mosaics = lay_out(selection, 8)
    assert mosaics.count == count == len(list(mosaics.files(png=False)))
    for number in range(count):
        np.testing.assert_array_equal(mosaics.rgb(number), selection.clip.rgb([number])[0])
    slots = {1: [0], 3: [0, 32, 63]}[count]
    assert np.unique(mosaics.positions_N3[:, 0]).tolist() == slots
    frame, place = np.divmod(mosaics.visible_N, 16)
    assert mosaics.visible_N.dtype == np.int64
    assert np.unique(frame).tolist() == list(range(count))
    np.testing.assert_array_equal(
        place, mosaics.positions_N3[:, 1] * 4 + mosaics.positions_N3[:, 2]
    )


def test_a_picture_thinner_than_a_patch_cannot_exclude_padding(tmp_path, write_video, texture):
    path = write_video(tmp_path / "strip.mp4", texture(0, 16, 160)[None].repeat(4, axis=0))
    clip = sample_clip(
        path, 4, 64, 16, geometry="square", config=SelectionConfig(padding="exclude")
    )
    with pytest.raises(ValueError, match="no patch .* choose padding = keep"):
        mosaic_budget(clip, 3)


def test_options_that_cannot_work_are_named():
    for changes, message in (
        ({"num_images": 0}, "num_images = 0"),
        ({"num_frames": 65}, "num_frames = 65"),
        ({"patch": 14}, "size = 576 must be a multiple of patch = 14"),
        ({"config": SelectionConfig(policy="groups")}, "policy = 'groups'"),
        ({"given_selection": True, "geometry": "crop"}, "geometry = 'crop'"),
    ):
        with pytest.raises(ValueError, match=message):
            MosaicOptions(**changes)


def test_the_hash_changes_with_every_option():
    changed = [
        {"num_frames": 32},
        {"num_images": 4},
        {"size": 448},
        {"patch": 32},
        {"geometry": "crop"},
        {"sampling": "time"},
        {"seed": 1},
        {"lossless": True},
        {"given_selection": True},
        {"config": SelectionConfig(w_mv=0.5)},
        {"config": SelectionConfig(padding="exclude")},
    ]
    hashes = {MosaicOptions(**options).hash for options in [{}, *changed]}
    assert len(hashes) == len(changed) + 1
    # Patches of 14 pixels are PNG with or without the option: equal bytes, equal hash.
    png = [MosaicOptions(size=504, patch=14, lossless=flag).hash for flag in (True, False)]
    assert png[0] == png[1]
