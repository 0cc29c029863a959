from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codecvit.codec.decode import open_video
from codecvit.codec.sampling import read_index, sample_ids


@given(st.integers(1, 500), st.integers(1, 64))
def test_samples_are_distinct_even_and_hold_both_ends(frames, wanted):
    ids = sample_ids(np.arange(frames) / 25, wanted, None, None)
    assert len(ids) == min(frames, wanted)
    assert ids[0] == 0
    assert len(ids) == 1 or ids[-1] == frames - 1
    steps = np.diff(ids)
    assert (steps >= 1).all()
    assert len(ids) == 1 or steps.max() - steps.min() <= 1


def test_start_and_end_bound_the_samples():
    seconds = np.arange(100) / 10
    ids = sample_ids(seconds, 5, 2.0, 4.0)
    assert seconds[ids].tolist() == [2.0, 2.4, 2.9, 3.4, 3.9]  # end is excluded
    assert len(sample_ids(seconds, 5, 10.0, None)) == 0


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
