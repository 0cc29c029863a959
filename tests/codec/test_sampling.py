from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codecvit.codec.container import open_video
from codecvit.codec.sampling import Sampling, plan_frames, read_index


def _ids(seconds, *options, **more):
    return plan_frames(np.asarray(seconds), Sampling(*options, **more)).ids_M


@given(st.integers(1, 500), st.integers(1, 64))
def test_samples_are_distinct_even_and_hold_both_ends(frames, wanted):
    ids = _ids(np.arange(frames) / 25, wanted)
    assert len(ids) == min(frames, wanted)
    assert ids[0] == 0
    assert len(ids) == 1 or ids[-1] == frames - 1
    steps = np.diff(ids)
    assert (steps >= 1).all()
    assert len(ids) == 1 or steps.max() - steps.min() <= 1


def test_start_and_end_bound_the_samples():
    seconds = np.arange(100) / 10
    ids = _ids(seconds, 5, start=2.0, end=4.0)
    assert seconds[ids].tolist() == [2.0, 2.4, 2.9, 3.4, 3.9]  # end is excluded
    assert len(_ids(seconds, 5, start=10.0)) == 0


@given(st.integers(1, 500), st.integers(1, 64), st.sampled_from([0, 0.25, 1 / 3, 0.5, 5 / 6]))
def test_a_phase_takes_one_frame_of_each_of_equal_stretches(frames, wanted, phase):
    ids = _ids(np.arange(frames) / 25, wanted, phase=phase)
    count = min(frames, wanted)
    assert len(ids) == count
    shares = ids * count / frames - np.arange(count)  # place of each in its stretch
    assert (shares <= phase + 1e-9).all()
    assert (shares > phase - count / frames - 1e-9).all()


def test_phases_interleave():
    seconds = np.arange(100) / 10
    assert _ids(seconds, 4, phase=0).tolist() == [0, 25, 50, 75]
    assert _ids(seconds, 4, phase=0.5).tolist() == [12, 37, 62, 87]
    assert _ids(seconds, 4, "time", phase=0.5).tolist() == [12, 37, 62, 87]
    assert _ids(seconds, 4, phase=0.5, start=2.0, end=4.0).tolist() == [22, 27, 32, 37]
    with pytest.raises(ValueError, match="phase = 1 must be None or a share"):
        Sampling(4, phase=1)


def test_by_time_spaces_samples_evenly_where_the_rate_varies():
    # Ten frames in the first second, then one a second.
    seconds = np.concatenate([np.arange(10) / 10, np.arange(1, 10)])
    assert seconds[_ids(seconds, 10, "time")].tolist() == list(range(10))
    assert seconds[_ids(seconds, 10, "index")].tolist() == [0, 0.2, 0.4, 0.6, 0.8, 1, 3, 5, 7, 9]
    # Nobody is taken twice, so fewer come out than asked for.
    assert len(_ids(seconds, 19, "time")) < 19
    assert (np.diff(_ids(seconds, 19, "time")) > 0).all()


@given(st.lists(st.floats(0.001, 3), min_size=1, max_size=60), st.integers(1, 64))
def test_by_time_each_sample_is_the_nearest_frame(gaps, wanted):
    seconds = np.concatenate([[0], np.cumsum(gaps)])
    ids = _ids(seconds, wanted, "time")
    assert ids[0] == 0
    assert wanted == 1 or ids[-1] == len(seconds) - 1
    for target in np.linspace(0, seconds[-1], min(wanted, len(seconds)))[
        : None if wanted > 1 else 1
    ]:
        assert np.abs(seconds[ids] - target).min() <= np.abs(seconds - target).min() + 1e-9


def test_partner_is_the_frame_pair_dt_before_a_sample_after_a_wide_gap():
    seconds = np.concatenate([np.arange(5) / 10, 0.4 + np.arange(1, 21) / 10])
    plan = plan_frames(seconds, Sampling(3, pair_dt=0.3))
    assert plan.ids_M.tolist() == [0, 12, 24]
    assert plan.partners_T.tolist() == [9, 21]
    assert plan.all_ids.tolist() == [0, 9, 12, 21, 24]
    # Samples that are close enough have no other partner than the one before.
    dense = plan_frames(seconds, Sampling(25, pair_dt=0.3))
    assert dense.partners_T.tolist() == list(range(24))
    # A partner lies between its sample and the one before, however coarse the frames are.
    coarse = plan_frames(np.arange(5) * 2.0, Sampling(5, pair_dt=0.3))
    assert coarse.partners_T.tolist() == [0, 1, 2, 3]
    assert plan_frames(seconds, Sampling(3)).partners_T.tolist() == [0, 12]


def test_index_lists_display_times_in_order_despite_b_frames(tmp_path, write_video, texture):
    frames = np.stack([texture(i, 48, 48) for i in range(20)])
    path = write_video(tmp_path / "b.mp4", frames, gop=6, b_frames=2)
    with open_video(path) as (container, stream):
        decode_order = [p.pts for p in container.demux(stream) if p.size]
    assert decode_order != sorted(decode_order)  # the file has B frames
    with open_video(path) as (container, stream):
        index = read_index(container, stream)
    assert index.usable
    assert index.count == 20
    assert index.pts_N.tolist() == sorted(decode_order)
    assert 2 <= len(index.keys_G) < 20


def test_packets_without_times_make_no_index(tmp_path, write_video, texture):
    path = write_video(
        tmp_path / "b.avi", np.stack([texture(i, 48, 48) for i in range(8)]), b_frames=2
    )
    with open_video(path) as (container, stream):
        index = read_index(container, stream)
    assert not index.usable
    assert index.count >= 8
