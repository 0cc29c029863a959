"""Questions about the demo clips: true, readable by the evaluation, and worded as it words them."""

from __future__ import annotations

import collections
import json

import pytest

from codecvit.codec.llava.cli import main
from codecvit.codec.llava.rows import with_mosaics
from codecvit.llava.demo_questions import DIGITS, write_questions
from codecvit.llava.mcq.parse import strategy_named
from codecvit.llava.mcq.questions import read_questions

MOTIONS = ("right", "left", "down", "up", "clockwise", "counterclockwise", "growing", "shrinking")


@pytest.fixture
def data(tmp_path):
    """Tables of 160 training and 32 test clips; the clips themselves are never opened."""
    folder = tmp_path / "data"
    for split, count in (("train", 160), ("test", 32)):
        (folder / split).mkdir(parents=True)
        lines = ["path,motion,digit"]
        for number in range(count):
            motion = MOTIONS[number % 8]
            path = folder / split / motion / f"{number:04d}.mp4"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"")
            lines.append(f"{split}/{motion}/{number:04d}.mp4,{motion},{number // 8 % 10}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def _rows(out):
    return json.loads((out / "train.json").read_text())


def _pairs(row):
    values = [turn["value"] for turn in row["conversations"]]
    return list(zip(values[::2], values[1::2], strict=True))


def test_answers_of_training_rows_are_those_of_the_table(data, tmp_path):
    write_questions(data, tmp_path / "out", variants=2)
    rows = _rows(tmp_path / "out")
    assert len(rows) == 2 * 160 and len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        number = int(row["video"][-8:-4])
        truths = {MOTIONS[number % 8], DIGITS[number // 8 % 10]}
        told = set()
        for text, answer in _pairs(row):
            options = [line[3:] for line in text.splitlines() if line[1:3] == ". "]
            assert not options or answer in options
            told.add(answer)
        assert told == truths and len(_pairs(row)) == 4


def test_the_first_lesson_asks_of_every_clip_how_it_moves(data, tmp_path):
    write_questions(data, tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "open.json").read_text())
    assert len({row["video"] for row in rows}) == len(rows) == 160
    for row in rows:
        ((text, answer),) = _pairs(row)
        assert text == "<video>\nWhich way does the digit move?"
        assert answer == row["video"].split("/")[1]


def test_a_row_shows_its_video_once_and_becomes_a_row_of_mosaics(data, tmp_path):
    write_questions(data, tmp_path / "out", variants=1)
    for row in _rows(tmp_path / "out")[:20]:
        assert [turn["value"].count("<video>") for turn in row["conversations"]].count(1) == 1
        packed = with_mosaics(row, ["a.png", "b.png"], "positions_thw.npy")
        assert packed["conversations"][0]["value"].startswith("<image>\n<image>\nWhich ")


def test_options_are_worded_as_the_evaluation_words_them(data, tmp_path):
    out = tmp_path / "out"
    write_questions(data, out, variants=8)
    asked = {
        text.removeprefix("<video>\n")
        for row in _rows(out)
        for text, _ in _pairs(row)
        if "A. " in text
    }
    # A prompt without its options is the same text in both places.
    bare = {"\n".join(t.splitlines()[:1] + t.splitlines()[-1:]) for t in asked}
    questions, form = read_questions(out / "benchmark")
    assert form == "merv"
    for question in questions:
        text = strategy_named("letter").prompt(question)
        assert "\n".join(text.splitlines()[:1] + text.splitlines()[-1:]) in bare


def test_the_benchmark_is_true_and_its_videos_are_found(data, tmp_path):
    out = tmp_path / "out"
    write_questions(data, out)
    questions, _ = read_questions(out / "benchmark")
    assert collections.Counter(q.task for q in questions) == {"motion": 32, "digit": 32}
    for question in questions:
        assert (out / "benchmark" / question.video).is_file()
        number = int(question.video[-8:-4])
        truth = {"motion": MOTIONS[number % 8], "digit": DIGITS[number // 8 % 10]}[question.task]
        assert question.options[question.answer] == truth
        assert set(question.options) == set(MOTIONS if question.task == "motion" else DIGITS)


def test_neither_place_nor_turn_tells_the_answer(data, tmp_path):
    out = tmp_path / "out"
    write_questions(data, out, variants=16)
    letters = collections.defaultdict(collections.Counter)
    first = collections.Counter()
    for row in _rows(out):
        first[_pairs(row)[0][0]] += 1
        for text, answer in _pairs(row):
            if "A. " in text and "move" in text:
                place = next(line[0] for line in text.splitlines() if line[3:] == answer)
                letters[answer][place] += 1
    for counts in letters.values():  # 320 draws of 8: expected 40, standard deviation 5.9
        assert set(counts) == set("ABCDEFGH") and max(counts.values()) < 75
    assert len(first) > 10  # open or with options, of both subjects, in many orders


def test_equal_seeds_give_equal_files_and_others_do_not(data, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_questions(data, tmp_path / name, seed=seed)
    files = ("train.json", "benchmark/test_q.json", "benchmark/test_a.json")
    texts = {n: [(tmp_path / n / f).read_bytes() for f in files] for n in "abc"}
    assert texts["a"] == texts["b"]
    assert all(x != y for x, y in zip(texts["a"], texts["c"], strict=True))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda folder: (folder / "test.csv").unlink(), "demo-data"),
        (lambda folder: (folder / "train.csv").write_text("path,motion\na,left\n"), "digit"),
        (lambda folder: (folder / "train.csv").write_text("path,motion,digit\n"), "no clips"),
        (lambda folder: (folder / "train.csv").write_text("path,motion,digit\na,up,1\n"), "right"),
    ],
)
def test_what_is_no_demo_data_is_refused(data, tmp_path, change, word, capsys):
    change(data)
    arguments = ["demo-questions", "--data", str(data), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert word in capsys.readouterr().err


def test_a_folder_in_the_place_of_the_link_stays(data, tmp_path):
    place = tmp_path / "out" / "benchmark" / "videos"
    place.mkdir(parents=True)
    with pytest.raises(ValueError, match="choose another --out"):
        write_questions(data, tmp_path / "out")
    assert place.is_dir()
