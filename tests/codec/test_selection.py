from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecvit.codec.config import PRESETS, SelectionConfig
from codecvit.codec.saliency import saliency
from codecvit.codec.selection import choose_frames, select, top_patches
from codecvit.sequence import slot_times


@pytest.fixture(scope="module")
def clip(scene, clip_of):
    """20 frames of 8 x 8 patches."""
    return clip_of(scene("right", frames=20)[0])


def _brute_force_top(scores, count, cap=None):
    """One patch after the other: the highest score, the earliest among equals."""
    pairs, blocks = scores.shape
    left = {(t, n): scores[t, n] for t in range(pairs) for n in range(blocks)}
    room = [np.inf if cap is None else np.ceil(cap * blocks)] * pairs
    chosen = []
    while left and len(chosen) < count:
        open_ = [key for key in left if room[key[0]] > 0] or list(left)
        t, n = min(open_, key=lambda key: (-left[key], key))
        chosen.append(t * blocks + n)
        room[t] -= 1
        del left[t, n]
    return sorted(chosen)


@given(st.integers(0, 10_000), st.integers(0, 40), st.sampled_from([None, 0.2, 0.5, 1.0]))
def test_top_patches_equal_brute_force(seed, count, cap):
    # Few distinct values: ties everywhere.
    scores = np.random.default_rng(seed).integers(0, 5, (5, 7)).astype(np.float32)
    assert top_patches(scores, count, cap).tolist() == _brute_force_top(scores, count, cap)


def test_codec_keeps_the_first_frame_and_the_best_of_the_rest(clip):
    sequence = select(clip, "codec", budget=150)
    t, h, w = sequence.positions.T
    assert len(sequence) == 150
    assert (t == 0).sum() == 64
    scores = saliency(clip.motion, 8, PRESETS["default"])
    chosen = {
        (int(slot_times(20)[1 + i // 64]), i % 64 // 8, i % 8)
        for i in _brute_force_top(scores, 150 - 64)
    }
    assert chosen == {tuple(p) for p in sequence.positions[t > 0].tolist()}


def test_budget_of_all_patches_or_more_keeps_all(clip):
    for budget in (20 * 64, 5000):
        assert len(select(clip, "codec", budget)) == 20 * 64
    assert len(select(clip, "codec", 64)) == 64


@pytest.mark.parametrize("mode", ["codec", "frames", "collage"])
@pytest.mark.parametrize("seed", [None, 3])
def test_patches_are_the_pixels_at_their_positions(clip, mode, seed):
    sequence = select(clip, mode, budget=5 * 64, seed=seed)
    assert len(sequence) == 5 * 64
    rgb = clip.rgb()
    frame_of_slot = {int(slot): i for i, slot in enumerate(slot_times(20))}
    frames = choose_frames(20, 5, seed)
    for patch, (t, h, w) in zip(sequence.patches, sequence.positions, strict=True):
        frame, row = (frames[h // 8], h % 8) if mode == "collage" else (frame_of_slot[t], h)
        expected = rgb[frame, row * 14 : row * 14 + 14, w * 14 : w * 14 + 14]
        np.testing.assert_array_equal(patch, expected)


def test_frames_keep_their_slots_and_collage_stacks_them(clip):
    frames = select(clip, "frames", budget=4 * 64 + 63)
    collage = select(clip, "collage", budget=4 * 64 + 63)
    slots = slot_times(20)[[2, 7, 12, 17]]
    assert np.unique(frames.positions[:, 0]).tolist() == slots.tolist()
    assert not collage.positions[:, 0].any()
    assert collage.positions[:, 1].tolist() == np.repeat(np.arange(32), 8).tolist()
    np.testing.assert_array_equal(collage.patches, frames.patches)


@given(st.integers(1, 64), st.integers(1, 64), st.none() | st.integers(0, 1000))
def test_one_frame_of_each_equal_bin(samples, count, seed):
    frames = choose_frames(samples, count, seed)
    kept = min(samples, count)
    assert len(frames) == kept
    for j, frame in enumerate(frames):
        assert j * samples // kept <= frame < (j + 1) * samples // kept


def test_seed_draws_frames_but_no_codec_patches(clip):
    draws = [select(clip, "frames", 3 * 64, seed) for seed in range(8)]
    assert len({d.positions.tobytes() for d in draws}) > 3
    np.testing.assert_array_equal(select(clip, "frames", 3 * 64, 5).positions, draws[5].positions)
    codec = [select(clip, "codec", 200, seed).positions.tobytes() for seed in (None, 1, 2)]
    assert len(set(codec)) == 1


@pytest.mark.parametrize(
    "change", [{"scale": "frame"}, {"scale": "sqrt"}, {"camera": "none"}, {"camera": "median"},
               {"w_res": 0.2}, {"w_mv": 3.0}, {"frame_cap": 0.05}]
)  # fmt: skip
def test_every_field_changes_the_selection(scene, clip_of, change):
    # A zooming camera, so that its models differ, and motion that comes and goes.
    still, _ = scene("left", seed=5, frames=10)
    zoom, _ = scene("cw", seed=6, frames=10)
    frames = np.stack([_zoomed(f, 1 + 0.04 * i) for i, f in enumerate([*still, *zoom])])
    clip = clip_of(frames)
    changed = dataclasses.replace(SelectionConfig(), **change)
    default = select(clip, "codec", 300).positions
    assert not np.array_equal(select(clip, "codec", 300, config=changed).positions, default)


def _zoomed(frame, zoom):
    from PIL import Image

    size = len(frame)
    margin = size * (1 - 1 / zoom) / 2
    box = (margin, margin, size - margin, size - margin)
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.BICUBIC, box))


def test_cap_bounds_a_cut(texture, clip_of):
    frames = np.stack([texture(0, 112, 112)] * 6 + [texture(9, 112, 112)] * 6)
    noise = np.random.default_rng(0).integers(0, 6, frames.shape).astype(np.uint8)
    clip = clip_of(frames // 2 + noise)
    cut = slot_times(12)[6]
    free = select(clip, "codec", 64 + 80).positions[:, 0]
    capped = select(clip, "codec", 64 + 80, config=SelectionConfig(frame_cap=0.25)).positions[:, 0]
    assert (free == cut).sum() == 64
    assert (capped == cut).sum() == 16
    assert len(capped) == len(free)


def test_cap_gives_way_to_the_budget(clip):
    sequence = select(clip, "codec", 64 + 600, config=SelectionConfig(frame_cap=0.1))
    assert len(sequence) == 64 + 600


@pytest.mark.parametrize("motion", ["left", "up", "cw", "grow"])
def test_chosen_patches_hit_what_moves(scene, clip_of, motion):
    """At least twice as often as random ones, over a drifting camera."""
    hits, area = [], []
    for seed in range(3):
        frames, masks = scene(motion, seed=seed, side=36)
        sequence = select(clip_of(frames), "codec", 64 + 64)
        covered = masks.reshape(24, 8, 14, 8, 14).mean(axis=(2, 4)) > 0.1
        t, h, w = sequence.positions[64:].T
        hits.append(covered[np.searchsorted(slot_times(24), t), h, w].mean())
        area.append(covered[1:].mean())
    assert np.mean(hits) >= 2 * np.mean(area), (hits, area)


def test_bad_arguments(clip):
    with pytest.raises(ValueError, match="mode = 'all' must be one of codec, frames, collage"):
        select(clip, "all")
    with pytest.raises(ValueError, match="budget = 63 is below one frame of 8 x 8 = 64"):
        select(clip, "frames", 63)
