"""Chunks resume after any death, merge to what one chunk gives, and leave nothing out."""

from __future__ import annotations

import json
import os

import pytest

from codecvit.llava.mcq.merge import Incomplete, merge, read_results
from codecvit.llava.mcq.records import CHUNKS, RESULTS, ResultsError, chunk_files, whole_lines
from codecvit.llava.mcq.runner import BrokenModel

from .mcq_made import Pictures, StandIn, made_questions, run_all


def results(out):
    return (out / RESULTS).read_bytes()


@pytest.fixture(scope="module")
def questions():
    return made_questions(9)


@pytest.fixture(scope="module")
def whole(questions, tmp_path_factory):
    """results.jsonl of one uninterrupted chunk."""
    out = tmp_path_factory.mktemp("whole")
    run_all(questions, StandIn(questions, "hash"), out)
    merge(out)
    return results(out)


@pytest.mark.parametrize("strategy", ["letter", "loglik", "first_char"])
@pytest.mark.parametrize(("rule", "accuracy"), [("truth", 1.0), ("wrong", 0.0)])
def test_all_right_is_1_and_all_wrong_is_0(questions, tmp_path, strategy, rule, accuracy):
    run_all(questions, StandIn(questions, rule), tmp_path, strategy)
    summary = merge(tmp_path)
    assert summary["accuracy"] == summary["macro"] == accuracy
    assert summary["coverage"] == 1.0 and summary["statuses"]["ok"] == 9


@pytest.mark.parametrize("parts", [2, 4, 8, 12])
def test_chunks_merge_to_what_one_chunk_gives(questions, whole, tmp_path, parts):
    run_all(questions, StandIn(questions, "hash"), tmp_path, parts=parts)
    merge(tmp_path)
    assert results(tmp_path) == whole


@pytest.mark.parametrize("batch_size", [2, 4, 20])
def test_batches_change_nothing(questions, whole, tmp_path, batch_size):
    run_all(questions, StandIn(questions, "hash"), tmp_path, batch_size=batch_size)
    merge(tmp_path)
    assert results(tmp_path) == whole


@pytest.mark.parametrize("after", range(10))
@pytest.mark.parametrize("parts", [1, 4])
def test_killed_after_any_question_and_run_again(questions, whole, tmp_path, after, parts):
    dying = StandIn(questions, "hash", die_after=after)
    if after < 9:
        with pytest.raises(KeyboardInterrupt):
            run_all(questions, dying, tmp_path, parts=parts)
        with pytest.raises(Incomplete, match=rf"{9 - after} of 9 questions"):
            merge(tmp_path)
    else:
        run_all(questions, dying, tmp_path, parts=parts)
    second = StandIn(questions, "hash")
    run_all(questions, second, tmp_path, parts=parts)
    assert sorted(dying.asked + second.asked) == sorted(q.id for q in questions)
    merge(tmp_path)
    assert results(tmp_path) == whole


@pytest.mark.parametrize("after", [0, 1, 5, 8])
def test_a_process_that_vanishes_loses_nothing_it_had_answered(questions, whole, tmp_path, after):
    """No file is closed, nothing flushed at exit: a line that was written is on the disk."""
    dying = StandIn(questions, "hash", die_after=after, death=lambda: os._exit(9))
    child = os.fork()
    if child == 0:
        run_all(questions, dying, tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    second = StandIn(questions, "hash")
    run_all(questions, second, tmp_path)
    assert second.asked == [q.id for q in questions[after:]]
    merge(tmp_path)
    assert results(tmp_path) == whole


def test_a_line_cut_off_at_any_byte_is_asked_again(questions, whole, tmp_path):
    run_all(questions, StandIn(questions, "hash"), tmp_path)
    (path,) = chunk_files(tmp_path)
    content = path.read_bytes()
    last = content.rfind(b"\n", 0, -1) + 1
    for cut in {last, last + 1, (last + len(content)) // 2, len(content) - 2, len(content) - 1}:
        path.write_bytes(content[:cut])
        again = StandIn(questions, "hash")
        run_all(questions, again, tmp_path)
        assert again.asked == ["q8"]
        assert path.read_bytes() == content
        merge(tmp_path)
        assert results(tmp_path) == whole


@pytest.mark.parametrize("steps", [(4, 1), (1, 4), (8, 3, 2), (3, 7)])
def test_the_number_of_chunks_may_change_midway(questions, whole, tmp_path, steps):
    asked = []
    for parts in steps[:-1]:
        dying = StandIn(questions, "hash", die_after=2)
        with pytest.raises(KeyboardInterrupt):
            run_all(questions, dying, tmp_path, parts=parts)
        asked += dying.asked
    # Another process may be writing its line just now: it is not there yet, and not cut off.
    other = chunk_files(tmp_path)[0]
    other.write_bytes(other.read_bytes() + b'{"index": 8, "qu')
    last = StandIn(questions, "hash")
    run_all(questions, last, tmp_path, parts=steps[-1])
    assert sorted(asked + last.asked) == sorted(q.id for q in questions)
    merge(tmp_path)
    assert results(tmp_path) == whole


def test_a_complete_run_asks_nothing(questions, tmp_path):
    run_all(questions, StandIn(questions, "hash"), tmp_path)
    again = StandIn(questions, "hash")
    run_all(questions, again, tmp_path, parts=3)
    assert again.asked == []


def test_merge_refuses_holes_duplicates_strangers_and_torn_runs(questions, tmp_path):
    run_all(questions, StandIn(questions, "hash"), tmp_path, parts=2)
    first, second = chunk_files(tmp_path)
    kept = second.read_bytes()
    lines = kept.splitlines(keepends=True)
    second.write_bytes(b"".join(lines[:1] + lines[2:]))
    with pytest.raises(Incomplete, match=r"1 of 9 questions have no answer yet \(numbers 5\)"):
        merge(tmp_path)
    assert not (tmp_path / RESULTS).exists()
    second.write_bytes(kept + lines[0])
    with pytest.raises(ResultsError, match="question 4 was answered twice, in chunk-00001-of"):
        merge(tmp_path)
    (tmp_path / CHUNKS / "chunk-00000-of-00009.jsonl").write_bytes(lines[0])
    second.write_bytes(kept)
    with pytest.raises(ResultsError, match="answered twice, in .* and "):
        merge(tmp_path)
    (tmp_path / CHUNKS / "chunk-00000-of-00009.jsonl").unlink()
    strange = json.loads(lines[0]) | {"index": 9}
    second.write_bytes(kept + json.dumps(strange).encode() + b"\n")
    with pytest.raises(ResultsError, match=r"answers of questions \[9\]"):
        merge(tmp_path)
    second.write_bytes(kept + json.dumps(strange | {"run": "0"}).encode() + b"\n")
    with pytest.raises(ResultsError, match="a line of another run"):
        merge(tmp_path)
    second.write_bytes(kept + b"{not json\n")
    with pytest.raises(ResultsError, match="line 6 is no result"):
        merge(tmp_path)
    second.write_bytes(kept)
    merge(tmp_path)
    assert [r["index"] for r in read_results(tmp_path)[1]] == list(range(9))


def test_a_folder_keeps_to_one_run(questions, tmp_path):
    run_all(questions, StandIn(questions, "hash"), tmp_path)
    for changed in (
        lambda: run_all(questions, StandIn(questions, "truth"), tmp_path),
        lambda: run_all(questions, StandIn(questions, "hash"), tmp_path, "loglik"),
        lambda: run_all(questions[:8], StandIn(questions, "hash"), tmp_path),
    ):
        with pytest.raises(ResultsError, match="run with other options"):
            changed()
    with pytest.raises(ResultsError, match="model.rule"):
        run_all(questions, StandIn(questions, "truth"), tmp_path)


def test_where_files_lie_makes_no_other_run(questions, tmp_path):
    answerer = StandIn(questions, "hash")
    run_all(questions, answerer, tmp_path)
    answerer.describe = lambda: {**StandIn(questions, "hash").describe(), "path": "/elsewhere"}
    run_all(questions, answerer, tmp_path)


def test_a_missing_video_lowers_coverage_and_nothing_else(questions, tmp_path):
    pictures = Pictures(broken={questions[0].video})  # of questions 0 and 1
    run_all(questions, StandIn(questions, "truth"), tmp_path, pictures=pictures, batch_size=3)
    summary = merge(tmp_path)
    assert summary["questions"] == 9 and summary["statuses"]["decode_error"] == 2
    assert summary["coverage"] == pytest.approx(7 / 9)
    assert summary["accuracy"] == pytest.approx(7 / 9)  # of all, not of the 7
    assert summary["accuracy_of_parsed"] == 1.0
    records = read_results(tmp_path)[1]
    assert [r["status"] for r in records] == ["decode_error"] * 2 + ["ok"] * 7
    assert "does not exist" in records[0]["error"]


def test_a_failing_question_costs_only_itself(questions, tmp_path):
    run_all(questions, StandIn(questions, "truth", fails={"q4"}), tmp_path, batch_size=4)
    summary = merge(tmp_path)
    assert summary["statuses"] == {"ok": 8, "unparsed": 0, "decode_error": 0, "gen_error": 1}
    assert read_results(tmp_path)[1][4]["error"] == "RuntimeError: no answer to q4"


def test_a_batch_too_large_is_asked_one_by_one(questions, whole, tmp_path):
    run_all(questions, StandIn(questions, "hash", width=1), tmp_path, batch_size=9)
    merge(tmp_path)
    assert results(tmp_path) == whole


def test_failures_are_asked_again_on_request_only(questions, tmp_path):
    failing = StandIn(questions, "truth", fails={"q2", "q5"})
    run_all(questions, failing, tmp_path, parts=2)
    again = StandIn(questions, "truth")
    run_all(questions, again, tmp_path, parts=2)
    assert again.asked == []
    run_all(questions, again, tmp_path, parts=3, retry=True)
    assert again.asked == ["q2", "q5"]
    assert merge(tmp_path)["accuracy"] == 1.0
    assert sum(len(whole_lines(path)[0]) for path in chunk_files(tmp_path)) == 11


def test_unparsed_replies_are_wrong_and_counted(questions, tmp_path):
    run_all(questions, StandIn(questions, "Camera is moving"), tmp_path)
    summary = merge(tmp_path)
    assert summary["statuses"]["unparsed"] == 9
    assert (summary["accuracy"], summary["coverage"]) == (0.0, 1.0)
    assert summary["accuracy_of_parsed"] is None


def test_a_broken_model_stops_after_20_and_leaves_its_lines(tmp_path):
    many = made_questions(60)
    with pytest.raises(BrokenModel, match="20 times in a row"):
        run_all(many, StandIn(many, fails={q.id for q in many}), tmp_path)
    with pytest.raises(Incomplete, match="40 of 60"):
        merge(tmp_path)
    run_all(many, StandIn(many), tmp_path, retry=True)
    assert merge(tmp_path)["accuracy"] == 1.0


def test_ties_and_letters_are_reported(questions, tmp_path):
    run_all(questions, StandIn(questions, "none"), tmp_path, "loglik")  # all letters score alike
    summary = merge(tmp_path)
    assert summary["ties"] == 9 and summary["chosen"] == {"A": 9}
    assert sum(summary["truth"].values()) == 9 and len(summary["truth"]) == 4


def test_scores_that_are_no_numbers_are_failures(questions, tmp_path):
    answerer = StandIn(questions)
    inner = answerer.loglik

    def loglik(asked):
        return [type(a)(1, 1, scores=(float("nan"),) * 4) for a in inner(asked)]

    answerer.loglik = loglik
    run_all(questions, answerer, tmp_path, "loglik")
    assert merge(tmp_path)["statuses"]["gen_error"] == 9


def test_a_run_states_what_decides_it(questions, tmp_path):
    run_all(questions, StandIn(questions, "hash"), tmp_path)
    summary = merge(tmp_path)
    assert summary["run"]["strategy"] == "letter" and "{question}" in summary["run"]["prompt"]
    assert summary["run"]["model"]["fingerprint"] == "0"
    assert summary["tokens"] == {"visual": 1024.0, "text": 40.0}
    record = read_results(tmp_path)[1][3]
    assert record["prompt"].startswith("Question number 3?\nA. option 3-0")
    assert (record["visual_tokens"], record["text_tokens"], record["source"]) == (1024, 40, "asset")
    assert record["truth"] == "ABCD"[record["answer"]]
