"""Benchmarks are read as they are, and every question falls into exactly one chunk."""

from __future__ import annotations

import json

import pytest

from codecvit.codec.llava.span import Span
from codecvit.llava.mcq.mvbench import MVBENCH, missing_tasks
from codecvit.llava.mcq.questions import Question, chunk, questions_hash, read_questions

from .mcq_made import made_questions, write_merv


def test_chunks_are_a_partition_of_nearly_equal_parts():
    for total in range(200):
        items = list(range(total))
        for count in range(1, 20):
            parts = [chunk(items, k, count) for k in range(count)]
            assert sum(parts, []) == items
            sizes = [len(part) for part in parts]
            assert len(parts) == count and max(sizes) - min(sizes) <= 1


def test_mervs_own_example_has_chunks_3_of_4_and_5_to_7_of_8():
    """Chunks of ceil(9 / n) questions leave these empty, or beyond the end."""
    items = list(range(9))
    assert [len(chunk(items, k, 4)) for k in range(4)] == [2, 2, 2, 3]
    assert [len(chunk(items, k, 8)) for k in range(8)] == [1, 1, 1, 1, 1, 1, 1, 2]


def test_merv(tmp_path):
    folder = write_merv(tmp_path / "bench")
    (folder / "videos" / "video_10336.mp4").touch()
    questions, form = read_questions(folder)
    assert form == "merv" and len(questions) == 9
    assert [q.answer for q in questions] == [0, 1, 2] * 3
    first = questions[0]
    assert first.video == "videos/video_10336.mp4"
    assert (first.task, first.letters, first.options[1]) == ("bench", "ABC", "I don't know")
    assert first.span == Span(end_frame=595)


def test_merv_time_bounds_and_tvqas_nan(tmp_path):
    folder = write_merv(tmp_path)
    rows = json.loads((folder / "test_q.json").read_text())
    for row, time in zip(rows, ([2.5, 7], [float("nan"), float("nan")], [0, 3.0]), strict=False):
        row["time"], row["end_frame"] = time, -1
    (folder / "test_q.json").write_text(json.dumps(rows))
    spans = [q.span for q in read_questions(folder)[0][:3]]
    assert spans == [Span(2.5, 7.0), Span(), Span(end=3.0)]


def test_merv_videos_with_brackets_namesakes_and_subtitles(tmp_path):
    folder = write_merv(tmp_path, questions=3, videos=3)
    rows = json.loads((folder / "test_q.json").read_text())
    for row, name in zip(rows, ("clip [1]", "a", "gone"), strict=True):
        row["video_name"] = name
    (folder / "test_q.json").write_text(json.dumps(rows))
    for name in ("clip [1].webm", "clip 1.mp4", "a.mp4", "a.b.mp4", "a.srt"):
        (folder / "videos" / name).touch()
    found = [q.video for q in read_questions(folder)[0]]
    assert found == ["videos/clip [1].webm", "videos/a.mp4", "videos/gone"]
    (folder / "videos" / "a.mkv").touch()
    with pytest.raises(ValueError, match=r"a is several files \(a.mkv, a.mp4\)"):
        read_questions(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("test_q.json", lambda rows: rows[0].pop("options"), "lacks options"),
        ("test_q.json", lambda rows: rows[0].update(num_option=4), "num_option 4 and 3"),
        ("test_q.json", lambda rows: rows.append(rows[0]), "two questions of question_id"),
        ("test_q.json", lambda rows: rows[0].update(options="ABC"), "must be a list"),
        ("test_q.json", lambda rows: rows[0].update(options=["x"], num_option=1), "1 options"),
        ("test_q.json", lambda rows: rows[0].update(time=[5, 4]), "must be greater than start"),
        ("test_a.json", lambda rows: rows[0].update(answer_id=3), "number 3 among 3"),
        ("test_a.json", lambda rows: rows[0].update(answer_id="a"), "must be a number"),
        ("test_a.json", lambda rows: rows.pop(), "has no answer of question_id mcvqa_10336_8"),
        ("test_a.json", lambda rows: rows.append(rows[0]), "two answers"),
    ],
)
def test_merv_faults_are_named(tmp_path, file, change, message):
    folder = write_merv(tmp_path)
    rows = json.loads((folder / file).read_text())
    change(rows)
    (folder / file).write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        read_questions(folder)


@pytest.fixture
def mvbench(tmp_path):
    """A folder with one bounded, one plain and the one frame task."""
    (tmp_path / "json").mkdir()
    row = {"video": "x.mp4", "question": "What?", "candidates": ["run", "sit", "eat"]}
    row |= {"answer": "sit", "start": 1.5, "end": 4.0}
    for task in ("Action Sequence", "Moving Count", "Episodic Reasoning"):
        (tmp_path / "json" / MVBENCH[task].json).write_text(json.dumps([row, row]))
    return tmp_path


def test_mvbench(mvbench):
    questions, form = read_questions(mvbench)
    assert form == "mvbench" and len(questions) == 6
    assert [q.index for q in questions] == list(range(6))
    by_task = {q.task: q for q in questions}
    assert by_task["Action Sequence"].video == "video/star/Charades_v1_480/x.mp4"
    assert by_task["Action Sequence"].span == Span(1.5, 4.0)
    assert by_task["Moving Count"].span.whole  # its rows may state bounds, the task has none
    assert by_task["Episodic Reasoning"].video == "video/tvqa/frames_fps3_hq/x.mp4"
    assert all(q.answer == 1 for q in questions)
    assert len(missing_tasks(questions)) == 17


def test_mvbench_has_20_tasks_of_which_5_are_bounded_and_1_is_frames():
    assert len(MVBENCH) == 20 and len({task.json for task in MVBENCH.values()}) == 20
    assert {name for name, task in MVBENCH.items() if task.bounded} == {
        "Episodic Reasoning",
        "Action Sequence",
        "Action Prediction",
        "Action Localization",
        "Object Interaction",
    }
    assert [name for name, task in MVBENCH.items() if task.kind == "frame"] == [
        "Episodic Reasoning"
    ]


def test_mvbench_frames_need_their_rate_stated(mvbench):
    frames = mvbench / "video" / "tvqa" / "frames_fps3_hq"
    frames.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"write 3 into .*fps\.txt"):
        read_questions(mvbench)
    (frames / "fps.txt").write_text("3")
    assert len(read_questions(mvbench)[0]) == 6


def test_mvbench_truth_must_be_one_candidate(mvbench):
    path = mvbench / "json" / MVBENCH["Moving Count"].json
    row = json.loads(path.read_text())[0]
    for candidates, times in ((["run", "eat"], 0), (["sit", "sit"], 2)):
        path.write_text(json.dumps([{**row, "candidates": candidates}]))
        with pytest.raises(ValueError, match=f"'sit' stands {times} times"):
            read_questions(mvbench)


def test_a_folder_of_neither_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither test_q.json"):
        read_questions(tmp_path)
    with pytest.raises(ValueError, match="must be one of merv, mvbench"):
        read_questions(write_merv(tmp_path / "a"), "nextqa")


def test_the_hash_of_questions_changes_with_each_of_them():
    questions = made_questions(5)
    hashes = {questions_hash(questions), questions_hash(questions[::-1])}
    for change in ({"text": "x"}, {"options": ("a", "b")}, {"answer": 3}, {"span": Span(end=2)}):
        fields = {**vars(questions[0]), "answer": 0, **change}
        hashes.add(questions_hash([Question(**fields), *questions[1:]]))
    assert len(hashes) == 6
