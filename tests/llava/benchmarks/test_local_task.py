"""A benchmark of our own as a task of lmms-eval, and the comparison of both runners' replies."""

from __future__ import annotations

import json

from codecvit.llava.benchmarks import local_task

from ..mcq_made import StandIn, made_questions, run_all, write_merv


def test_a_local_task_asks_the_same_and_differences_are_told(tmp_path, capsys):
    bench = write_merv(tmp_path / "bench", questions=4)
    command = ["write", "--benchmark", str(bench), "--out", str(tmp_path / "tasks")]
    assert local_task.main(command) == 2  # its questions have an end_frame
    assert "about a part of" in capsys.readouterr().err
    rows = [
        {k: v for k, v in r.items() if k != "end_frame"}
        for r in json.loads((bench / "test_q.json").read_text())
    ]
    (bench / "test_q.json").write_text(json.dumps(rows))
    assert local_task.main(command) == 0
    asked = [json.loads(x) for x in (tmp_path / "tasks/questions.jsonl").read_text().splitlines()]
    assert [a["truth"] for a in asked] == ["A", "B", "C", "A"]
    assert (
        asked[1]["prompt"].startswith("What is number 1?")
        and "B. I don't know" in (asked[1]["prompt"])
    )
    assert (
        json.dumps(str(tmp_path / "tasks/questions.jsonl"))
        in (tmp_path / "tasks/codecvit_local.yaml").read_text()
    )
    own, other = (
        tmp_path / "own",
        tmp_path / "other" / "m" / "20260101_samples_codecvit_local.jsonl",
    )
    questions = made_questions(4)
    run_all(questions, StandIn(questions), own)
    from codecvit.llava.mcq.merge import merge

    merge(own)
    replies = [q.letters[q.answer] for q in questions]
    other.parent.mkdir(parents=True)

    def samples(replies):
        lines = [
            {"doc_id": i, "doc": {"index": i}, "filtered_resps": [r]} for i, r in enumerate(replies)
        ]
        other.write_text("".join(json.dumps(line) + "\n" for line in lines))

    samples(replies)
    both = ["compare", str(own), str(tmp_path / "other")]
    assert local_task.main(both) == 0 and "4 of 4" in capsys.readouterr().out
    samples([*replies[:3], "x"])
    assert local_task.main(both) == 1 and "question 3" in capsys.readouterr().out
    samples(replies[:3])
    assert local_task.main(both) == 2 and "has 3" in capsys.readouterr().err
