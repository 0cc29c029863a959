from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from codecvit.codec.block_search import scale_planes, search_vectors
from codecvit.codec.blocks import (
    BLOCK,
    block_origins,
    blocks_at,
    blocks_of,
    difference,
    texture,
)
from codecvit.codec.motion import Samples, estimate_motion

GRID = 8
SIDE = GRID * BLOCK


def _estimate(luma, rows, columns=None, partners=None, signal="estimate"):
    return estimate_motion(Samples(luma, partners, None, rows, columns or rows), signal)


@pytest.mark.parametrize("shift", [(0, 0), (5, -3), (-16, 16), (16, 0)])
def test_pure_translation_leaves_no_residual(texture, shift):
    """Where the content was in view before, the vector is the shift and the error is zero."""
    dx, dy = shift
    # Coarse texture: the search goes downhill and needs a slope of the length of the shift.
    quarter = Image.fromarray(texture(1, SIDE // 4 + 32, SIDE // 4 + 32)[..., 1])
    wide = np.asarray(quarter.resize((SIDE + 128, SIDE + 128), Image.Resampling.BICUBIC))
    before = wide[64 : 64 + SIDE, 64 : 64 + SIDE]
    after = wide[64 - dy : 64 - dy + SIDE, 64 - dx : 64 - dx + SIDE]  # moved by (dx, dy)
    motion = _estimate(np.stack([before, after]), GRID)
    source = block_origins(GRID, GRID) - np.array(shift)
    inside = ((source >= 0) & (source <= SIDE - BLOCK)).all(axis=1)
    assert inside.sum() >= 20
    np.testing.assert_array_equal(
        motion.vectors_TN2[0, inside], np.tile((-dx, -dy), (inside.sum(), 1))
    )
    assert motion.error_TNB[0, inside].max() == 0


def test_each_pair_looks_at_the_frame_before(texture):
    """The filter is one frame late: vectors must belong to the frame they come with."""
    wide = texture(2, SIDE + 64, SIDE + 64)[..., 1]
    offsets = [0, 2, 6, 14]  # steps of 2, 4, 8 pixels
    frames = np.stack([wide[:SIDE, o : o + SIDE] for o in offsets])
    vectors_TN2 = _estimate(frames, GRID).vectors_TN2
    assert len(vectors_TN2) == 3
    np.testing.assert_array_equal(np.median(vectors_TN2, axis=1), [[2, 0], [4, 0], [8, 0]])


def test_error_is_that_of_the_vector(texture):
    frames = np.stack([texture(i, SIDE, SIDE)[..., 0] for i in range(2)])
    planes, vectors = search_vectors(frames, GRID, GRID)
    motion = _estimate(frames, GRID)
    np.testing.assert_array_equal(planes, frames)  # no scaling needed at 16 pixels a patch
    for block, (x, y) in enumerate(block_origins(GRID, GRID)):
        dx, dy = vectors[0, block]
        now = frames[1, y : y + BLOCK, x : x + BLOCK].astype(int)
        then = frames[0, y + dy : y + dy + BLOCK, x + dx : x + dx + BLOCK].astype(int)
        np.testing.assert_array_equal(motion.error_TNB[0, block], np.abs(now - then).ravel())
        np.testing.assert_allclose(motion.texture_TN[0, block], now.std(), rtol=1e-5)


def test_patches_of_14_pixels_get_a_block_each(texture):
    wide = texture(3, 224, 224 + 28)[..., 1]
    motion = _estimate(np.stack([wide[:, :224], wide[:, 14 : 14 + 224]]), 16)
    assert motion.vectors_TN2.shape == (1, 256, 2)
    # One patch of 14 pixels is one block of 16: the shift is a whole block.
    inside = motion.vectors_TN2[0].reshape(16, 16, 2)[:, :-1]
    assert (inside == (16, 0)).all(axis=-1).mean() > 0.95


def test_single_frame_has_no_pairs(texture):
    motion = _estimate(texture(4, SIDE, SIDE)[None, ..., 0], GRID)
    assert motion.vectors_TN2.shape == (0, GRID**2, 2)
    assert motion.error_TNB.shape == (0, GRID**2, BLOCK**2)


def test_blocks():
    plane = np.arange(48 * 48).reshape(48, 48) % 251
    plane = plane.astype(np.uint8)
    np.testing.assert_array_equal(blocks_of(plane)[5], plane[16:32, 32:48].ravel())
    np.testing.assert_array_equal(
        blocks_at(plane, np.array([[7, 3]]))[0], plane[3:19, 7:23].ravel()
    )
    np.testing.assert_array_equal(blocks_at(plane, block_origins(3, 3)), blocks_of(plane))


@pytest.mark.parametrize(("rows", "columns"), [(3, 8), (8, 3)])
def test_the_picture_need_not_be_square(texture, rows, columns):
    """Vectors, errors and planes of an oblong picture lie where its blocks lie."""
    height, width = rows * BLOCK, columns * BLOCK
    wide = texture(5, height, width + 16)[..., 1]
    frames = np.stack([wide[:, :width], wide[:, 8 : 8 + width]])  # all moves left by 8
    motion = _estimate(frames, rows, columns)
    assert (motion.rows, motion.columns) == (rows, columns)
    vectors = motion.vectors_TN2.reshape(rows, columns, 2)[:, :-1]
    assert (vectors == (8, 0)).all(axis=-1).mean() > 0.8
    right = motion.error_TNB.reshape(rows, columns, -1)[:, -1]  # new picture comes in here
    assert right.mean() > 2 * motion.error_TNB.mean()


@pytest.mark.parametrize(("rows", "columns"), [(26, 30), (5, 31)])
def test_fine_grids_are_searched_in_blocks_of_two_patches(texture, rows, columns):
    """Also where halves do not come out even, vectors are in pixels of the whole plane."""
    height, width = rows * BLOCK, columns * BLOCK
    coarse = Image.fromarray(texture(5, height // 4, width // 4 + 8)[..., 1])
    wide = np.asarray(coarse.resize((width + 32, height), Image.Resampling.BICUBIC))
    motion = _estimate(np.stack([wide[:, :width], wide[:, 8 : 8 + width]]), rows, columns)
    vectors = motion.vectors_TN2.reshape(rows, columns, 2)[:, :-2]
    assert np.abs(vectors - (8, 0)).max(axis=-1).mean() < 0.6
    still = np.abs(wide[:, 8 : 8 + width].astype(int) - wide[:, :width])
    error = motion.error_TNB.reshape(rows, columns, -1)[:, :-2]
    assert error.mean() < 0.15 * still.mean()


def test_scaled_planes_are_those_of_the_search(texture):
    frames = np.stack([texture(i, 56, 84)[..., 1] for i in range(3)])
    planes, _ = search_vectors(frames, 4, 6)
    assert planes.shape == (3, 64, 96)
    np.testing.assert_array_equal(scale_planes(frames, 4, 6), planes)


def test_difference_is_an_error_without_motion(texture):
    wide = texture(2, SIDE, SIDE + 8)[..., 1]
    frames = np.stack([wide[:, :SIDE], wide[:, 8:]])
    motion = _estimate(frames, GRID, signal="difference")
    assert not motion.vectors_TN2.any()
    plain = np.abs(frames[1].astype(int) - frames[0])
    np.testing.assert_array_equal(motion.error_TNB[0], blocks_of(plain))
    assert plain.mean() > 3 * _estimate(frames, GRID).error_TNB.mean()


def test_partners_take_the_place_of_the_sample_before(texture):
    """Two samples that share nothing, and a partner from which the second one is a shift."""
    first = texture(1, SIDE, SIDE)[..., 1]
    wide = texture(2, SIDE, SIDE + 6)[..., 1]
    partner, second = wide[:, :SIDE], wide[:, 6:]
    samples = np.stack([first, second, second])
    motion = _estimate(samples, GRID, partners=np.stack([partner, second]))
    vectors = motion.vectors_TN2[0].reshape(GRID, GRID, 2)[:, :-1]
    assert (vectors == (6, 0)).all(axis=-1).mean() > 0.9
    assert not motion.error_TNB[1].any()
    alone = _estimate(samples, GRID)
    assert alone.error_TNB[0].mean() > 5 * motion.error_TNB[0].mean()
    np.testing.assert_array_equal(motion.texture_TN, alone.texture_TN)


def test_difference_does_not_wrap():
    a, b = np.array([0, 255, 10], np.uint8), np.array([255, 0, 13], np.uint8)
    assert difference(a, b).tolist() == [255, 255, 3]


def test_texture_of_flat_blocks_is_zero():
    blocks = np.full((2, 256), 200, np.uint8)
    blocks[1, ::2] = 190
    np.testing.assert_allclose(texture(blocks), [0, 5])
