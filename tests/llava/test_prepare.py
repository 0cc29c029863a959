"""Benchmarks in the layouts of their authors become folders that the runners read."""

from __future__ import annotations

import json

import pytest

from codecvit.codec.image_folder import ImageFolder
from codecvit.codec.llava.span import Span
from codecvit.llava.mcq.mvbench import MVBENCH
from codecvit.llava.mcq.questions import read_questions
from codecvit.llava.open_ended.questions import read_open
from codecvit.llava.prepare.datasets import DATASETS
from codecvit.llava.prepare.verb import main


def put(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def put_json(path, value):
    put(path, json.dumps(value))


def put_lines(path, rows):
    put(path, "".join(json.dumps(row) + "\n" for row in rows))


def frames(folder):
    for number in (1, 2, 3):
        put(folder / f"{number:05d}.jpg", b"x")


@pytest.fixture
def prepare(tmp_path, capsys):
    """prepare(name, *options): runs the verb over tmp_path/root; gives (status, output)."""

    def run(name, *options):
        command = [name, "--root", str(tmp_path / "root"), "--out", str(tmp_path / "out")]
        status = main([*command, *options])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def made_msvd(root):
    rows = [
        {"id": 40, "video_id": 1, "question": "who sings?", "answer": "man"},
        {"id": 41, "video_id": 2, "question": "what runs?", "answer": "dog"},
        {"id": 42, "video_id": 1, "question": "where?", "answer": "stage"},
    ]
    put_json(root / "MSVD-QA" / "test_qa.json", rows)
    put(root / "MSVD-QA" / "youtube_mapping.txt", "-4wsuPCj_5_15 vid1\nmv89psg6zh4_33_46 vid2\n")
    put(root / "YouTubeClips" / "-4wsuPCj_5_15.avi")


def test_msvd_names_are_mapped_and_missing_videos_reported(prepare, tmp_path):
    made_msvd(tmp_path / "root")
    status, told = prepare("msvd")
    assert status == 0 and "missing: 1 videos of 1 questions (videos/mv89psg6zh4_33_46)" in told
    assert "codecvit llava answer --benchmark" in told
    questions, form = read_open(tmp_path / "out")
    assert form == "qa" and [q.id for q in questions] == ["40", "41", "42"]  # none is dropped
    assert [q.reference for q in questions] == ["man", "dog", "stage"]
    assert questions[0].video == "videos/-4wsuPCj_5_15.avi" and questions[0].task == "msvd"
    assert (tmp_path / "out" / "missing.txt").read_text() == "videos/mv89psg6zh4_33_46\n"
    # The video turns up elsewhere: run again.
    put(tmp_path / "root" / "more" / "mv89psg6zh4_33_46.mp4")
    status, told = prepare("msvd")
    assert status == 0 and "missing" not in told
    assert not (tmp_path / "out" / "missing.txt").exists()


def test_msrvtt(prepare, tmp_path):
    rows = [{"id": 1, "video_id": 7010, "category_id": 3, "question": "who?", "answer": "cat"}]
    put_json(tmp_path / "root" / "test_qa.json", rows)
    put(tmp_path / "root" / "TestVideo" / "video7010.mp4")
    assert prepare("msrvtt")[0] == 0
    (question,) = read_open(tmp_path / "out")[0]
    assert question.video == "videos/video7010.mp4" and (tmp_path / "out" / question.video).exists()


def test_tgif_has_tabs_and_quotation_marks(prepare, tmp_path):
    text = "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\n"
    text += 'tumblr_a\twhat is the "thing, there ?\tcat\t0\tID1\t9\n'
    text += "tumblr_b\twhat color ?\tred\t2\tID2\t10\n"
    put(tmp_path / "root" / "dataset" / "Test_frameqa_question.csv", text)
    for name in "ab":
        put(tmp_path / "root" / "gifs" / f"tumblr_{name}.gif")
    assert prepare("tgif")[0] == 0
    questions = read_open(tmp_path / "out")[0]
    assert [q.text for q in questions] == ['what is the "thing, there ?', "what color ?"]
    assert [(q.task, q.video) for q in questions] == [
        ("object", "videos/tumblr_a.gif"),
        ("color", "videos/tumblr_b.gif"),
    ]


def test_activitynet_prefix_and_types(prepare, tmp_path):
    asked = [
        {"video_name": "1QIUV7WYKXg", "question_id": "v_1_0", "question": "is it red?"},
        {"video_name": "abc", "question_id": "v_2_0", "question": "what?"},
    ]
    answers = [
        {"question_id": "v_2_0", "answer": "ball", "type": 5},
        {"question_id": "v_1_0", "answer": "no", "type": 3},
    ]
    put_json(tmp_path / "root" / "dataset" / "test_q.json", asked)
    put_json(tmp_path / "root" / "dataset" / "test_a.json", answers)
    put(tmp_path / "videos" / "v_1QIUV7WYKXg.mp4")
    put(tmp_path / "videos" / "abc.mkv")
    assert prepare("activitynet", "--videos", str(tmp_path / "videos"))[0] == 0
    questions = read_open(tmp_path / "out")[0]
    assert [(q.task, q.reference) for q in questions] == [("yes or no", "no"), ("object", "ball")]
    assert all((tmp_path / "out" / q.video).exists() for q in questions)


def test_vcgbench_is_copied(prepare, tmp_path):
    root = tmp_path / "root"
    row = {"video_name": "v_p1QG", "Q": "?", "A": "x"}
    put_json(root / "generic_qa.json", [row])
    put_json(root / "consistency_qa.json", [{**row, "Q1": "1", "Q2": "2"}])
    put(root / "Test_Videos" / "v_p1QG.mp4")
    status, told = prepare("vcgbench")
    assert status == 0 and "left out" in told and "temporal_qa.json" in told
    questions = read_open(tmp_path / "out")[0]
    assert len(questions) == 3 and {q.video for q in questions} == {"videos/v_p1QG.mp4"}


def test_vcgbench_diverse_names_have_endings(prepare, tmp_path):
    row = {"id": 3, "video_name": "x.y.mp4", "type": "summary", "Q": "?", "A": "x"}
    put_json(tmp_path / "root" / "vcgbench_diverse_qa.json", [row])
    put(tmp_path / "root" / "videos" / "x.y.mp4")
    assert prepare("vcgbench_diverse")[0] == 0
    (question,) = read_open(tmp_path / "out")[0]
    assert (tmp_path / "out" / question.video).exists()


def test_perception_test(prepare, tmp_path):
    row = {"question": "Moving?", "options": ["a", "b", "c"]}
    asked = [
        {**row, "id": 0, "answer_id": 2, "area": "semantics"},
        {**row, "id": 1, "answer_id": 0, "area": "physics"},
    ]
    value = {"video_8241": {"metadata": {}, "mc_question": asked}, "video_1": {"mc_question": []}}
    put_json(tmp_path / "root" / "mc_question_valid.json", value)
    put(tmp_path / "root" / "videos" / "video_8241.mp4")
    status, told = prepare("perception_test")
    assert status == 0 and "codecvit llava eval --benchmark" in told
    questions, form = read_questions(tmp_path / "out")
    assert form == "merv" and [q.answer for q in questions] == [2, 0]
    assert [q.task for q in questions] == ["semantics", "physics"]
    del asked[0]["answer_id"]
    put_json(tmp_path / "root" / "mc_question_valid.json", value)
    status, told = prepare("perception_test")
    assert status == 2 and "lacks answer_id" in told


def test_nextqa_has_nested_videos(prepare, tmp_path):
    head = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
    line = '4010069381,369,640,480,"how, do they",1,6,CH,"dance, alone",together,run,sit,eat\n'
    put(tmp_path / "root" / "nextqa" / "val.csv", head + line)
    put(tmp_path / "root" / "NExTVideo" / "1164" / "4010069381.mp4")
    status, told = prepare("nextqa")
    assert status == 2 and "holds no test.csv" in told
    assert prepare("nextqa", "--split", "val")[0] == 0
    (question,) = read_questions(tmp_path / "out")[0]
    assert question.options == ("dance, alone", "together", "run", "sit", "eat")
    assert (question.id, question.answer, question.task) == ("4010069381_6", 1, "CH")
    assert (tmp_path / "out" / question.video).exists()


def test_vlep_frames_get_their_rate(prepare, tmp_path):
    name = "OO9kSxcT9Rg_subs_012_00:13:00_00:14:00_ep"
    row = {"example_id": 21411, "vid_name": name, "ts": [10.54, 13.55], "answer": 1}
    put_lines(tmp_path / "root" / "vlep_dev_release.jsonl", [{**row, "events": ["eats", "takes"]}])
    frames(tmp_path / "root" / "vlep_frames" / name)
    assert prepare("vlep")[0] == 0
    (question,) = read_questions(tmp_path / "out")[0]
    assert question.span == Span(10.54, 13.55) and question.options == ("eats", "takes")
    folder = ImageFolder(tmp_path / "out" / question.video)
    assert folder.rate == 3.0 and len(folder.paths) == 3
    assert not (tmp_path / "root" / "vlep_frames" / "fps.txt").exists()


def test_tvqa_bounds(prepare, tmp_path):
    row = {f"a{k}": f"option {k}" for k in range(5)} | {"q": "What?", "answer_idx": 4}
    rows = [
        {**row, "qid": 7, "vid_name": "met_s06_clip_02", "ts": "1.21-8.49", "show_name": "HIMYM"},
        {**row, "qid": 8, "vid_name": "s01_clip_01", "ts": "nan-nan", "show_name": "BBT"},
    ]
    put_lines(tmp_path / "root" / "tvqa_qa_release" / "tvqa_val.jsonl", rows)
    frames(tmp_path / "root" / "frames_hq" / "met_frames" / "met_s06_clip_02")
    frames(tmp_path / "root" / "frames_hq" / "bbt_frames" / "s01_clip_01")
    put(tmp_path / "root" / "frames_hq" / "met_frames" / "fps.txt", "3\n")
    assert prepare("tvqa")[0] == 0
    questions = read_questions(tmp_path / "out")[0]
    assert [q.span for q in questions] == [Span(1.21, 8.49), Span()]
    assert [q.task for q in questions] == ["HIMYM", "BBT"] and questions[0].answer == 4
    put(tmp_path / "root" / "frames_hq" / "met_frames" / "fps.txt", "6\n")
    status, told = prepare("tvqa")
    assert status == 2 and "cannot lie in one folder" in told


def test_mvbench_keeps_its_folders(prepare, tmp_path):
    root = tmp_path / "root"
    row = {"video": "x.mp4", "question": "What?", "candidates": ["run", "sit"], "answer": "sit"}
    for task in ("Moving Count", "Action Count", "Episodic Reasoning"):
        put_json(root / "json" / MVBENCH[task].json, [{**row, "start": 1, "end": 2}])
    put(root / "video" / MVBENCH["Moving Count"].folder / "x.mp4", b"1")
    put(root / "video" / MVBENCH["Action Count"].folder / "x.mp4", b"2")
    frames(root / "video" / MVBENCH["Episodic Reasoning"].folder / "x.mp4")
    status, told = prepare("mvbench")
    assert status == 0 and "missing" not in told and told.count("left out") == 17
    by_task = {q.task: q for q in read_questions(tmp_path / "out")[0]}
    assert (tmp_path / "out" / by_task["Moving Count"].video).read_bytes() == b"1"
    assert (tmp_path / "out" / by_task["Action Count"].video).read_bytes() == b"2"
    assert ImageFolder(tmp_path / "out" / by_task["Episodic Reasoning"].video).rate == 3.0
    assert prepare("mvbench")[0] == 0


def test_what_cannot_be_prepared_is_told(prepare, tmp_path):
    root = tmp_path / "root"
    status, told = prepare("msvd")
    assert status == 2 and "root is no folder" in told
    made_msvd(root)
    status, told = prepare("msvd", "--split", "dev")
    assert status == 2 and "must be one of test, val" in told
    status, told = prepare("msvd", "--out", str(root / "out"))
    assert status == 2 and "must lie outside" in told
    (tmp_path / "empty").mkdir()
    status, told = prepare("msvd", "--videos", str(tmp_path / "empty"))
    assert status == 2 and "none of the 2 videos" in told
    put(root / "other" / "-4wsuPCj_5_15.mp4", b"another")
    status, told = prepare("msvd")
    assert status == 2 and "is both" in told
    put_json(root / "other" / "test_qa.json", [])
    status, told = prepare("msvd")
    assert status == 2 and "test_qa.json is several files" in told
    with pytest.raises(SystemExit):
        main(["msvd2", "--root", "x", "--out", "y"])


def test_the_table_and_the_documentation_agree(root):
    page = (root / "docs" / "llava_evaluation.md").read_text().split("## Preparing benchmarks")[1]
    for name, dataset in DATASETS.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        assert dataset.title.split(",")[0] in line
        first = next(iter(dataset.splits.values()))
        assert name == "mvbench" or all(f"`{file}`" in line for file in first)
