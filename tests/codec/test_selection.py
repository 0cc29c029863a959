from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codecvit.codec.config import SelectionConfig
from codecvit.codec.policies import choose_units
from codecvit.codec.selection import choose, choose_frames, choose_groups, group_edges
from codecvit.codec.selection import select as select_all
from codecvit.codec.view import Placement
from codecvit.sequence import slot_times


def select(clip, *options, config=None, **more):
    if config is not None:
        clip = dataclasses.replace(clip, config=config)
    (sequence,) = select_all(clip, *options, **more)
    return sequence


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
    chosen = choose_units(scores, count, SelectionConfig(frame_cap=cap), None)
    assert chosen.tolist() == _brute_force_top(scores, count, cap)


def test_codec_keeps_the_first_frame_and_the_best_of_the_rest(clip):
    sequence = select(clip, "codec", budget=150)
    t, h, w = sequence.positions.T
    assert len(sequence) == 150
    assert (t == 0).sum() == 64
    scores = clip.scores_MRC[1:].reshape(19, 64)
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


def test_a_phase_moves_the_frames_within_their_bins(clip):
    slots = slot_times(20)
    for phase, taken in ((0, [0, 5, 10, 15]), (None, [2, 7, 12, 17]), (0.8, [4, 9, 14, 19])):
        frames = select(clip, "frames", 4 * 64, phase=phase)
        assert np.unique(frames.positions[:, 0]).tolist() == slots[taken].tolist()


def test_seed_draws_frames_but_no_codec_patches(clip):
    draws = [select(clip, "frames", 3 * 64, seed) for seed in range(8)]
    assert len({d.positions.tobytes() for d in draws}) > 3
    np.testing.assert_array_equal(select(clip, "frames", 3 * 64, 5).positions, draws[5].positions)
    codec = [select(clip, "codec", 200, seed).positions.tobytes() for seed in (None, 1, 2)]
    assert len(set(codec)) == 1


@pytest.mark.parametrize(
    "change", [{"signal": "difference"}, {"policy": "time_bucket"}, {"policy": "random"},
               {"policy": "time_bucket", "policy_arg": 19}, {"block": 2},
               {"scale": "frame"}, {"scale": "sqrt"}, {"camera": "none"}, {"camera": "median"},
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


def test_a_ranked_first_frame_competes_by_its_detail(texture, clip_of):
    """A flat sky costs nothing to code; what moves later gets its share."""
    frames = np.stack([texture(0, 112, 112)] * 6)
    frames[:, :56] = 90
    rng = np.random.default_rng(0)
    for i in range(1, 6):
        frames[i, 56:, 56:] = rng.integers(0, 256, (56, 56, 3))
    sequence = select(clip_of(frames), "codec", 100, config=SelectionConfig(first_frame="ranked"))
    t, h, _ = sequence.positions.T
    assert len(sequence) == 100
    assert (h >= 4).all()
    assert 0 < (t == 0).sum() < 64
    whole = select(clip_of(frames), "codec", 100)
    assert (whole.positions[:, 0] == 0).sum() == 64


@pytest.mark.parametrize("policy", ["top_k", "time_bucket", "random"])
@pytest.mark.parametrize("first_frame", ["whole", "ranked"])
def test_blocks_are_chosen_whole(clip, policy, first_frame):
    config = SelectionConfig(block=2, policy=policy, first_frame=first_frame)
    positions = select(clip, "codec", 64 + 4 * 20 + 3, config=config).positions
    assert len(positions) == 64 + 4 * 20  # the three that make no block stay out
    assert first_frame == "ranked" or (positions[:, 0] == 0).sum() == 64
    blocks, sizes = np.unique(positions // (1, 2, 2), axis=0, return_counts=True)
    assert (sizes == 4).all()
    assert len(blocks) == 16 + 20


def test_a_block_is_as_good_as_its_mean(clip):
    positions = select(clip, "codec", 64 + 4 * 20, config=SelectionConfig(block=2)).positions[64:]
    means = clip.scores_MRC[1:].reshape(19, 4, 2, 4, 2).mean(axis=(2, 4))
    best = np.argsort(-means.ravel(), kind="stable")[:20]
    expected = {tuple(map(int, np.unravel_index(i, means.shape))) for i in best}
    t = np.searchsorted(slot_times(20), positions[:, 0]) - 1
    assert {
        (int(a), int(b) // 2, int(c) // 2) for a, (_, b, c) in zip(t, positions, strict=True)
    } == expected


@pytest.mark.parametrize("buckets", [1, 3, 19])
def test_time_buckets_get_their_share(clip, buckets):
    config = SelectionConfig(policy="time_bucket", policy_arg=buckets)
    count = 19 * 8 + 5
    t = select(clip, "codec", 64 + count, config=config).positions[64:, 0]
    frame = np.searchsorted(slot_times(20), t) - 1
    taken = np.bincount(frame * buckets // 19, minlength=buckets)
    assert taken.sum() == count
    assert taken.min() >= count // buckets
    if buckets == 1:
        np.testing.assert_array_equal(t, select(clip, "codec", 64 + count).positions[64:, 0])


def test_random_is_seeded_even_and_blind(clip, clip_of, scene):
    config = SelectionConfig(policy="random")
    draws = [select(clip, "codec", 64 + 300, seed, config=config).positions for seed in range(20)]
    again = select(clip, "codec", 64 + 300, 3, config=config).positions
    np.testing.assert_array_equal(again, draws[3])
    assert not np.array_equal(draws[3], draws[4])
    other = clip_of(scene("up", seed=8, frames=20)[0])
    np.testing.assert_array_equal(
        select(other, "codec", 64 + 300, 3, config=config).positions, again
    )
    t = np.concatenate([d[64:, 0] for d in draws])
    shares = np.bincount(np.searchsorted(slot_times(20), t), minlength=20)[1:] / len(t)
    np.testing.assert_allclose(shares, 1 / 19, atol=0.012)


def _letterboxed(clip_of, scene, padding):
    """A view of 8 x 8 patches whose picture is rows 24 to 90 of 112: patch rows 2 to 5 lie wholly
    in it, 1 and 6 partly."""
    clip = clip_of(scene("right", frames=20)[0], padding=padding)
    return dataclasses.replace(clip, placement=Placement(112, 112, 66, 112))


def test_padding_belongs_to_the_first_frame_only(clip_of, scene):
    clip = _letterboxed(clip_of, scene, "keep")
    assert clip.placement.rows == slice(23, 89)
    later = choose(clip, 64 + 19 * 48).thw_L3[64:]  # all patches with picture
    assert set(later[:, 1]) == {1, 2, 3, 4, 5, 6}
    more = choose(clip, 64 + 19 * 48 + 10)  # padding comes after everything else
    assert len(more) == 64 + 19 * 48 + 10
    assert (more.score_L[64:] == -1).sum() == 10


@pytest.mark.parametrize(
    ("padding", "rows"), [("exclude", {2, 3, 4, 5}), ("repeat", {1, 2, 3, 4, 5, 6})]
)
def test_padding_left_out_never_appears(clip_of, scene, padding, rows):
    clip = _letterboxed(clip_of, scene, padding)
    frame = 8 * len(rows)
    for budget in (frame, frame + 100, 10_000):
        found = choose(clip, budget)
        assert len(found) == min(budget, 20 * frame)
        assert set(found.thw_L3[:, 1]) == rows
        assert (found.thw_L3[:, 0] == 0).sum() == frame


@pytest.mark.parametrize("length", [1, 6, 20, 64])
def test_groups_of_fixed_length(clip_of, scene, length):
    clip = clip_of(scene("right", frames=20)[0], policy="groups", policy_arg=length)
    groups = choose_groups(clip, 64 + 30)
    starts = list(range(0, 20, length))
    assert [group.first_sample for group in groups] == starts
    for group, start in zip(groups, starts, strict=True):
        frames = min(length, 20 - start)
        assert len(group.clip) == frames
        assert len(group) == min(64 + 30, frames * 64)
        t, h, w = group.thw_L3.T
        assert (t == 0).sum() == 64  # the anchor
        assert set(group.positions_L3[:, 0]) <= set(slot_times(frames).tolist())
        expected = clip.patches(t + start, h, w)
        np.testing.assert_array_equal(group.sequence().patches, expected)
        np.testing.assert_array_equal(group.score_L, clip.scores_MRC[t + start, h, w])


def test_groups_by_news_are_short_where_much_happens(clip_of, texture):
    rng = np.random.default_rng(0)
    still = np.stack([texture(1, 56, 56)] * 100)
    busy = rng.integers(0, 256, (60, 56, 56, 3)).astype(np.uint8)
    clip = clip_of(np.concatenate([still, busy, still[:21]]), policy="groups")
    edges = group_edges(clip, budget=16 + 64)
    lengths = np.diff(edges)
    assert edges[0] == 0
    assert edges[-1] == len(clip) == 181
    assert lengths.max() <= 64
    assert lengths.min() >= 8
    middle = np.array(
        [length for start, length in zip(edges, lengths, strict=False) if 100 <= start < 145]
    )
    assert lengths[0] > 2 * middle.mean()


@given(st.integers(1, 150), st.integers(0, 5))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_groups_cover_every_sample_once(clip_of, frames, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 28, 28)).astype(np.uint8)
    clip = clip_of(pixels, policy="groups")
    edges = group_edges(clip, 8)
    assert edges[0] == 0
    assert edges[-1] == frames
    assert (np.diff(edges) > 0).all()
    assert (np.diff(edges) <= 64).all()


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
    with pytest.raises(ValueError, match="budget = 63 is below one frame of 64 patches"):
        select(clip, "frames", 63)
