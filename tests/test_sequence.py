"""What a patch sequence refuses, and the time slots."""

import numpy as np
import pytest

from codecvit.sequence import NUM_SLOTS, PatchSequence, slot_times


def patches(count=3, side=14):
    return np.arange(count * side * side * 3, dtype=np.uint8).reshape(count, side, side, 3)


def positions(*rows):
    return np.array(rows, np.int32)


GOOD = positions([0, 0, 1], [0, 1, 0], [5, 0, 0])


def test_a_good_sequence_keeps_its_arrays():
    sequence = PatchSequence(patches(), GOOD)
    assert (len(sequence), sequence.patch) == (3, 14)
    flat = sequence.flat()
    assert flat.shape == (3, 588)
    # (row, column, channel), the channel fastest.
    assert flat[1, 14 * 3 * 2 + 3 * 5 + 1] == sequence.patches[1, 2, 5, 1]


def test_the_patch_side_is_that_of_the_array():
    assert PatchSequence(patches(side=16), GOOD).patch == 16


@pytest.mark.parametrize(
    ("values", "rows", "message"),
    [
        (patches().astype(np.float32), GOOD, "patches must be a numpy array of uint8, got float32"),
        (patches().tolist(), GOOD, "patches must be a numpy array of uint8, got list"),
        (patches(), GOOD.astype(np.int64), "positions must be a numpy array of int32, got int64"),
        (patches()[..., :2], GOOD, r"patches must have shape \[L, P, P, 3\], got \[3, 14, 14, 2\]"),
        (patches()[:, :7], GOOD, r"got \[3, 7, 14, 3\]"),
        (patches()[..., None], GOOD, r"got \[3, 14, 14, 3, 1\]"),
        (patches(), GOOD[:2], r"positions must have shape \[3, 3\] to match patches, got \[2, 3\]"),
        (patches(0), GOOD[:0], "patches is empty"),
        (patches(), positions([0, 0, 0], [0, -1, 0], [1, 0, 0]), r"positions\[1\] .* is negative"),
        (patches(), positions([0, 0, 0], [1, 0, 0], [64, 0, 0]), r"positions\[2\] has t = 64"),
        (
            patches(),
            positions([0, 0, 1], [0, 0, 0], [1, 0, 0]),
            r"row 1 \[0, 0, 0\] comes after row 0",
        ),
        (
            patches(),
            positions([0, 0, 1], [0, 2, 0], [0, 1, 9]),
            r"row 2 \[0, 1, 9\] comes after row 1",
        ),
        (patches(), positions([0, 0, 1], [1, 0, 0], [1, 0, 0]), r"row 2 \[1, 0, 0\] repeats row 1"),
    ],
)
def test_what_is_wrong_is_named(values, rows, message):
    with pytest.raises(ValueError, match=message):
        PatchSequence(values, rows)


def test_slots_spread_over_the_whole_axis():
    assert slot_times(1).tolist() == [0]
    assert slot_times(2).tolist() == [0, 63]
    assert slot_times(8).tolist() == [0, 9, 18, 27, 36, 45, 54, 63]
    assert slot_times(NUM_SLOTS).tolist() == list(range(NUM_SLOTS))
    # 31.5 lies between two slots and goes to the even one, as do 10.5 and 52.5.
    assert slot_times(3).tolist() == [0, 32, 63]
    assert slot_times(7).tolist() == [0, 10, 21, 32, 42, 52, 63]


def test_no_two_samples_share_a_slot():
    for count in range(1, NUM_SLOTS + 1):
        slots = slot_times(count)
        assert slots.dtype == np.int32
        assert (np.diff(slots) > 0).all()
        assert slots[0] == 0 and (count == 1 or slots[-1] == NUM_SLOTS - 1)
    for count in (0, NUM_SLOTS + 1):
        with pytest.raises(ValueError, match=rf"num_samples = {count} must lie in 1\.\.64"):
            slot_times(count)
