"""Every example once, similar ones together, the same batches for any number of processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codecvit.llava.data.sampler import LengthGroupedBatches


def some(examples, seed=0, kinds=3):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 1000, examples), rng.integers(0, kinds, examples)


def taken(sampler, cursor):
    sampler.cursor = cursor
    lists = list(sampler)
    assert len(lists) == len(sampler)
    return lists


SIZES = st.tuples(st.integers(1, 120), st.sampled_from([(1, 1), (2, 1), (1, 3), (4, 2), (3, 2)]))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 3), st.integers(1, 4), st.integers(0, 99))
def test_every_example_once_and_as_many_lists_for_every_process(sizes, epoch, accumulate, seed):
    examples, (processes, batch_size) = sizes
    total = processes * batch_size * accumulate
    samplers = [
        LengthGroupedBatches(*some(examples), total, batch_size, processes, process, seed)
        for process in range(processes)
    ]
    first = samplers[0]
    lists = [taken(s, epoch * s.steps_per_epoch) for s in samplers]
    assert {len(one) for one in lists} == {first.steps_per_epoch * accumulate}
    assert first.accumulation == accumulate
    assert max(len(batch) for one in lists for batch in one) <= batch_size
    everything = sorted(i for one in lists for batch in one for i in batch)
    assert everything == list(range(examples))
    # What processes get of a step is its global batch.
    for step, batch in enumerate(first.global_batches(epoch)):
        here = slice(step * accumulate, (step + 1) * accumulate)
        assert sorted(batch) == sorted(i for one in lists for part in one[here] for i in part)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 3), st.integers(0, 2))
def test_from_any_step_on_the_rest_comes(examples, batch_size, accumulate):
    accumulate += 1
    sampler = LengthGroupedBatches(*some(examples), batch_size * accumulate, batch_size)
    per_epoch = sampler.steps_per_epoch
    whole = taken(sampler, 0) + taken(sampler, per_epoch)
    for cursor in range(2 * per_epoch):
        rest = taken(sampler, cursor)
        if cursor < per_epoch:
            rest += taken(sampler, per_epoch)
        assert rest == whole[cursor * accumulate :]


def test_the_global_batches_are_the_same_for_any_number_of_processes():
    def steps(processes, batch_size):
        lists = [
            taken(LengthGroupedBatches(*some(203), 8, batch_size, processes, p, 5), 0)
            for p in range(processes)
        ]
        size = 8 // processes // batch_size
        return [
            sorted(i for one in lists for part in one[k : k + size] for i in part)
            for k in range(0, len(lists[0]), size)
        ]

    alone = steps(1, 8)
    for processes, batch_size in ((1, 2), (2, 4), (2, 1), (4, 2), (4, 1), (8, 1)):
        assert steps(processes, batch_size) == alone
    assert len(alone) == 26 and len(alone[-1]) == 3


def test_seeds_and_epochs_differ_and_nothing_else_counts():
    make = lambda seed: LengthGroupedBatches(*some(100), 4, seed=seed)  # noqa: E731
    one = [b.tolist() for b in make(1).global_batches(0)]
    assert one == [b.tolist() for b in make(1).global_batches(0)]
    assert one != [b.tolist() for b in make(1).global_batches(1)]
    assert one != [b.tolist() for b in make(2).global_batches(0)]


def test_batches_hold_similar_lengths_of_one_kind():
    lengths, kinds = some(8000, kinds=4)
    batches = LengthGroupedBatches(lengths, kinds, 16).global_batches(0)
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
    by_chance = np.mean([np.ptp(lengths[i : i + 16]) for i in range(0, 8000, 16)])
    assert spread < by_chance / 15
    assert sum(len(set(kinds[batch])) > 1 for batch in batches) <= 4  # what remains of each kind
    padding = sum(lengths[b].max() * len(b) for b in batches) / lengths.sum() - 1
    assert padding < 0.05


def test_the_longest_example_comes_first_and_the_order_is_not_that_of_lengths():
    lengths, kinds = some(2000)
    batches = LengthGroupedBatches(lengths, kinds, 10).global_batches(3)
    assert lengths[batches[0]].max() == lengths[np.concatenate(batches[:-1])].max()
    means = [lengths[batch].mean() for batch in batches[1:]]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


def test_processes_get_examples_of_similar_length_at_the_same_time():
    lengths, kinds = some(640, kinds=1)
    lists = [taken(LengthGroupedBatches(lengths, kinds, 32, 2, 4, p), 0) for p in range(4)]
    for parts in zip(*lists, strict=True):
        together = np.sort(lengths[np.concatenate(parts)])
        assert min(lengths[part].max() for part in parts) >= together[-4]
        assert np.ptp(together) < 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_batch": 6, "processes": 4}, "global_batch = 6 must be a multiple of"),
        ({"global_batch": 8, "batch_size": 3}, "times batch_size = 3"),
        ({"global_batch": 0}, "global_batch = 0"),
        ({"processes": 2, "process": 2}, r"process = 2 must lie in 0..1"),
        ({"lengths": []}, "one number per example"),
        ({"kinds": [1]}, "one number per example"),
    ],
)
def test_sizes_that_cannot_be(change, message):
    arguments = {"lengths": [1, 2], "kinds": [0, 0], "global_batch": 2}
    with pytest.raises(ValueError, match=message):
        LengthGroupedBatches(**arguments | change)


def test_short_answers_of_other_lengths_are_mixed():
    """Rows that differ in a few tokens of answer: the answer must not decide the batch."""
    answers = np.random.default_rng(0).integers(0, 4, 6400)
    lengths = 130 + answers
    batches = LengthGroupedBatches(lengths, np.zeros(6400, int), 32).global_batches(0)
    most = [np.bincount(answers[batch]).max() for batch in batches]
    assert np.mean(most) < 16, "by chance 12 of 32; sorted strictly all 32"
