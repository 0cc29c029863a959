"""Open questions are read as published, go through the chunked runner, and reach the judge."""

from __future__ import annotations

import json

import pytest

from codecvit.codec.llava.span import Span
from codecvit.llava.mcq import verb as mcq_verb
from codecvit.llava.mcq.runner import Answer
from codecvit.llava.open_ended import answer, verb
from codecvit.llava.open_ended.predictions import read_jobs
from codecvit.llava.open_ended.questions import OpenQuestion, Plainly, missing_files, read_open
from codecvit.llava.report import page as report

from .judge_made import qa_rows
from .mcq_made import write_clip


def write_qa(folder, count=9, videos=3):
    """A benchmark as MERV ships it, of made clips."""
    (folder / "videos").mkdir(parents=True)
    for i in range(videos):
        write_clip(folder / "videos" / f"v{i}.mp4")
    asked = [
        {"video_name": f"v{i % videos}", "question_id": f"q{i}", "question": row["question"]}
        for i, row in enumerate(qa_rows(count))
    ]
    truth = [{"question_id": r["question_id"], "answer": r["answer"]} for r in qa_rows(count)]
    (folder / "test_q.json").write_text(json.dumps(asked))
    (folder / "test_a.json").write_text(json.dumps(truth))
    return folder


def write_vcgbench(folder):
    (folder / "videos").mkdir(parents=True)
    row = {"video_name": "v0", "Q": "What is it?", "A": "a ball"}
    pair = {"video_name": "v0", "Q1": "What is it?", "Q2": "Which thing is it?", "A": "a ball"}
    (folder / "generic_qa.json").write_text(json.dumps([row, row]))
    (folder / "temporal_qa.json").write_text(json.dumps([row]))
    (folder / "consistency_qa.json").write_text(json.dumps([pair, pair]))
    return folder


def test_qa_questions(tmp_path):
    folder = write_qa(tmp_path / "MSVD", videos=1)
    rows = json.loads((folder / "test_q.json").read_text())
    rows[0]["time"] = [1, 2.5]
    (folder / "test_q.json").write_text(json.dumps(rows))
    questions, form = read_open(folder)
    assert form == "qa" and [q.index for q in questions] == list(range(9))
    first = questions[0]
    assert (first.task, first.video, first.aspects) == ("MSVD", "videos/v0.mp4", ("qa",))
    assert first.reference == "thing0" and first.span == Span(1.0, 2.5)


def test_vcgbench_questions(tmp_path):
    questions, form = read_open(write_vcgbench(tmp_path))
    assert form == "vcgbench" and missing_files(tmp_path) == []
    assert [q.aspects for q in questions] == [("CI", "DO", "CU")] * 2 + [("TU",)] + [("CO",)] * 4
    assert [(q.id, q.part) for q in questions[3:5]] == [("consistency/0", 1), ("consistency/0", 2)]
    (tmp_path / "temporal_qa.json").unlink()
    assert missing_files(tmp_path) == ["temporal_qa.json"]


def test_diverse_questions(tmp_path):
    rows = [
        {"id": i, "video_name": "a.mp4", "type": kind, "Q": "?", "Q1": "1", "Q2": "2", "A": "x"}
        for i, kind in enumerate(["summary", "spatial", "reasoning", "temporal", "consistency"])
    ]
    path = tmp_path / "vcgbench_diverse_qa.json"
    path.write_text(json.dumps(rows))
    questions, form = read_open(tmp_path)
    assert form == "vcgbench_diverse" and questions[0].video == "videos/a.mp4"
    assert [q.task for q in questions] == [r["type"] for r in rows] + ["consistency"]
    assert [q.text for q in questions[3:]] == ["?", "1", "2"]
    path.write_text(json.dumps([{**rows[0], "type": "caption"}]))
    with pytest.raises(ValueError, match="type 'caption', which must be one of summary"):
        read_open(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("test_q.json", lambda rows: rows[0].update(options=["a", "b"]), "llava eval"),
        ("test_q.json", lambda rows: rows.append(rows[0]), "two questions have the id q0"),
        ("test_q.json", lambda rows: rows[0].pop("question"), "lacks question"),
        ("test_q.json", lambda rows: rows.clear(), "holds no questions"),
        ("test_a.json", lambda rows: rows.pop(), "has no answer of question_id q8"),
        ("test_a.json", lambda rows: rows.append(rows[0]), "two answers"),
    ],
)
def test_faults_are_named(tmp_path, file, change, message):
    folder = write_qa(tmp_path / "b", videos=1)
    rows = json.loads((folder / file).read_text())
    change(rows)
    (folder / file).write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        read_open(folder)


def test_what_a_model_is_asked_holds_no_answer():
    question = OpenQuestion(0, "q", "t", "<video>\nWho {is} it?", "secret", ("qa",), "v.mp4")
    assert Plainly().prompt(question) == "Who {is} it?"
    assert Plainly(" In a word.").prompt(question) == "Who {is} it? In a word."


class Parrot:
    """Answers by a rule of the prompt; fails at some prompts."""

    def __init__(self, fails=()):
        self.fails, self.asked = fails, []

    def generate(self, asked):
        for item in asked:
            if any(text in item.prompt for text in self.fails):
                raise RuntimeError("no memory")
        self.asked += [item.prompt for item in asked]
        return [Answer(64, 9, reply=self.rule(item.prompt)) for item in asked]

    def rule(self, prompt):
        number = int("".join(c for c in prompt if c.isdigit()) or 0)
        return f"a thing{number}" if number % 3 else "something else"

    def describe(self):
        return {"path": "parrot", "fingerprint": "0"}


@pytest.fixture
def parrot(monkeypatch):
    model = Parrot()
    monkeypatch.setattr(mcq_verb, "load_answerer", lambda args: (model, None, 8))
    return model


SMALL = ["--on-miss", "pack", "--size", "32", "--patch", "8", "--num-frames", "4"]
SMALL += ["--num-images", "2"]


def test_answers_in_chunks_become_predictions_and_judgements(tmp_path, parrot, capsys):
    folder = write_qa(tmp_path / "MSVD")
    (folder / "videos" / "v2.mp4").write_bytes(b"no video")  # of questions 2, 5 and 8
    out, command = tmp_path / "out", ["--model", "m", "--benchmark", str(folder), *SMALL]
    command += ["--out", str(out)]
    assert answer.main([*command, "--chunk", "0/2"]) == 0
    assert not (out / "predictions.jsonl").exists() and len(parrot.asked) == 3
    assert answer.main(["--merge", "--out", str(out)]) == 2
    assert "5 of 9 questions have no answer yet" in capsys.readouterr().err
    assert answer.main([*command, "--chunk", "1/2", "--batch-size", "2"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["statuses"] == {"ok": 6, "decode_error": 3, "gen_error": 0}
    assert summary["run"]["strategy"] == "open" and summary["coverage"] == pytest.approx(6 / 9)
    assert answer.main(command) == 0 and len(parrot.asked) == 6  # nothing is asked twice
    jobs, _ = read_jobs(out)
    assert [job.id for job in jobs] == [f"q{i}" for i in range(9)]
    assert [job.pred for job in jobs[:4]] == ["something else", "a thing1", None, "something else"]
    assert verb.main([str(out), "--judge", "exact", "--out", str(tmp_path / "judged")]) == 0
    figures = json.loads((tmp_path / "judged" / "summary.json").read_text())
    # Questions 1, 4, 7 are right; 2, 5, 8 have no video, and stay in the denominator.
    assert figures["aspects"]["qa"]["accuracy"] == pytest.approx(3 / 9)
    assert figures["statuses"]["unanswered"] == 3
    assert report.main([str(out), "--out", str(tmp_path / "page.html")]) == 2
    assert "no multiple-choice results" in capsys.readouterr().err


def test_both_answers_of_a_consistency_item_reach_the_judge(tmp_path, parrot):
    folder, out = write_vcgbench(tmp_path / "vcg"), tmp_path / "out"
    write_clip(folder / "videos" / "v0.mp4")
    parrot.rule = lambda prompt: "a ball" if prompt == "What is it?" else "a cat"
    command = ["--model", "m", "--benchmark", str(folder), "--out", str(out), *SMALL]
    assert answer.main(command) == 0
    jobs, _ = read_jobs(out)
    assert [job.aspect for job in jobs] == ["CI", "DO", "CU"] * 2 + ["TU", "CO", "CO"]
    assert (jobs[-1].pred, jobs[-1].pred_2) == ("a ball", "a cat")
    assert verb.main([str(out), "--judge", "exact", "--out", str(tmp_path / "judged")]) == 0
    figures = json.loads((tmp_path / "judged" / "summary.json").read_text())
    means = {name: row["score"] for name, row in figures["aspects"].items()}
    assert means == {"CI": 5.0, "DO": 5.0, "CU": 5.0, "TU": 5.0, "CO": 0.0}
    assert figures["average"] == 4.0


def test_one_failed_answer_of_two_is_no_answer(tmp_path, parrot):
    folder, out = write_vcgbench(tmp_path / "vcg"), tmp_path / "out"
    write_clip(folder / "videos" / "v0.mp4")
    parrot.fails = ("Which",)
    assert answer.main(["--model", "m", "--benchmark", str(folder), "--out", str(out), *SMALL]) == 0
    consistency = [job for job in read_jobs(out)[0] if job.aspect == "CO"]
    assert [(job.pred is None, job.pred_2, job.answered) for job in consistency] == [
        (False, None, False)
    ] * 2


def test_list_videos_and_misses(tmp_path, capsys):
    folder = write_qa(tmp_path / "MSVD")
    path = tmp_path / "videos.jsonl"
    assert answer.main(["--benchmark", str(folder), "--list-videos", str(path)]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["video"] for row in rows] == [f"videos/v{i}.mp4" for i in range(3)]
    (tmp_path / "assets").mkdir()
    command = ["--benchmark", str(folder), "--model", "m", "--out", str(tmp_path / "o")]
    assert answer.main([*command, "--assets", str(tmp_path / "assets")]) == 2
    assert "3 of 3 videos have no assets" in capsys.readouterr().err
