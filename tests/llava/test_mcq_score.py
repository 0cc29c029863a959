"""Figures of results, against numbers worked out by hand or by another formula."""

from __future__ import annotations

import math

import pytest

from codecvit.llava.mcq.score import compare, mcnemar, score, table, wilson


def record(index, task="t", status="ok", correct=False, prediction=0, options=4):
    asked = status in ("ok", "unparsed")
    return {
        "index": index,
        "id": f"q{index}",
        "task": task,
        "question": f"Q{index}",
        "options": [str(k) for k in range(options)],
        "answer": 0,
        "status": status,
        "correct": correct,
        "prediction": prediction if status == "ok" else None,
        "tie": False,
        "source": "asset" if asked else "none",
        "visual_tokens": 10 if asked else None,
        "text_tokens": 5 if asked else None,
    }


@pytest.mark.parametrize(("hits", "total"), [(1, 1), (3, 10), (81, 263), (159, 200), (2, 4000)])
def test_wilson_solves_its_equation(hits, total):
    """Its ends are the shares p from which hits/total is 1.96 standard errors of p away."""
    share = hits / total
    for p in wilson(hits, total):
        if 0 < p < 1:
            assert (share - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / total, rel=1e-5)


def test_wilson_known_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    for total in range(1, 50):
        assert wilson(0, total)[0] == 0.0 and wilson(total, total)[1] == 1.0
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)


def test_nothing_leaves_the_denominator():
    rows = [record(i, correct=i < 3) for i in range(4)]
    rows += [record(4, status="decode_error"), record(5, status="gen_error")]
    rows += [record(6, status="unparsed"), record(7, status="unparsed")]
    found = score(rows)
    assert found["accuracy"] == 3 / 8 and found["coverage"] == 6 / 8
    assert (found["parsed"], found["accuracy_of_parsed"]) == (4, 3 / 4)
    assert (found["low"], found["high"]) == wilson(3, 8)
    assert found["statuses"] == {"ok": 4, "unparsed": 2, "decode_error": 1, "gen_error": 1}
    assert found["visuals"] == {"asset": 6, "packed": 0, "frames": 0, "none": 2}
    assert found["tokens"] == {"visual": 10.0, "text": 5.0}


def test_macro_is_the_mean_over_tasks_failures_wrong():
    rows = [record(i, "big", correct=True) for i in range(8)]
    rows += [record(8, "small", correct=True), record(9, "small", status="decode_error")]
    found = score(rows)
    assert found["accuracy"] == 0.9 and found["macro"] == pytest.approx((1 + 0.5) / 2)
    assert found["tasks"]["small"]["coverage"] == 0.5


def test_chance_is_that_of_guessing_among_what_was_offered():
    assert score([record(0, options=2), record(1, options=4)])["chance"] == (0.5 + 0.25) / 2


def test_no_results_have_no_score():
    with pytest.raises(ValueError, match="no results"):
        score([])


def test_comparison_counts_flips():
    first = [record(i, correct=c) for i, c in enumerate([1, 1, 0, 0, 0])]
    second = [record(i, correct=c) for i, c in enumerate([1, 0, 1, 1, 0])]
    found = compare(first, second[::-1])  # paired by id, not by place
    assert (found["both"], found["lost"], found["gained"], found["neither"]) == (1, 1, 2, 1)
    assert found["same_choice"] == 5
    assert found["p"] == mcnemar(2, 1) == 1.0
    for other in (second[:4], [*second[:4], record(5)], [*second[:4], second[3]]):
        with pytest.raises(ValueError, match="not over the same questions"):
            compare(first, other)
    with pytest.raises(ValueError, match="not over the same questions"):
        compare(first, [{**second[0], "answer": 1}, *second[1:]])


def test_mcnemar_is_a_sign_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(3, 9) == mcnemar(9, 3)
    expected = 2 * sum(math.comb(12, i) for i in range(4)) / 2**12
    assert mcnemar(3, 9) == pytest.approx(expected)
    assert mcnemar(2000, 2000) == 1.0 and mcnemar(0, 3000) < 1e-300


def test_the_table_says_what_was_lost():
    rows = [record(0, "a", correct=True), record(1, "b", status="decode_error")]
    text = table(score(rows))
    for part in ("all (micro)", "all (macro)", "0.500", "decode_error 1", "count as wrong"):
        assert part in text, part
