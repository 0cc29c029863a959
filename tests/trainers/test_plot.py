"""`codecvit plot`: which curves it finds, and files that open."""

import json

import pytest
from PIL import Image

from codecvit.files import write_atomic
from codecvit.trainers.plot import draw, main, read_curves


def write_run(folder, losses, **more):
    folder.mkdir(parents=True)
    rows = [
        {"step": step, "time": 0.0, "train/loss": loss, "train/bad_records": 0.0, **more}
        for step, loss in enumerate(losses, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path):
    probe = {"probe/digit/knn_top1": 0.5}
    return [
        write_run(tmp_path / "a", [3.0, 2.0, 1.0]),
        write_run(tmp_path / "b<i>", [5.0], **probe),
    ]


def test_the_lines_are_the_numbers_of_the_runs(runs):
    curves = read_curves(runs)
    assert curves["a"] == {"train/loss": ([1, 2, 3], [3.0, 2.0, 1.0])}
    assert curves["b<i>"]["probe/digit/knn_top1"] == ([1], [0.5])
    probe, loss = draw(curves).axes[:2]
    assert (probe.get_title(), loss.get_title()) == ("probe/digit/knn_top1", "train/loss")
    assert [line.get_ydata().tolist() for line in loss.lines] == [[3.0, 2.0, 1.0], [5.0]]
    assert [line.get_label() for line in loss.lines] == ["a", "b<i>"]


def test_equal_folder_names_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / name / "run", [1.0]) for name in "xy"]
    assert list(read_curves(runs)) == [str(run) for run in runs]


def test_a_run_behind_a_url_is_drawn(runs):
    content = (runs[0] / "metrics.jsonl").read_bytes()
    write_atomic("memory://plot/runs/L/metrics.jsonl", content)
    curves = read_curves([*runs, "memory://plot/runs/L/"])
    assert curves["L"] == curves["a"]


def test_a_line_that_a_kill_cut_short_is_left_out(runs, tmp_path, capsys):
    whole = read_curves(runs)
    with (runs[0] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "time": 0.0, "train/lo')
    assert read_curves(runs) == whole
    (runs[0] / "metrics.jsonl").write_text('{"step": 1}{"step": 2}\n')
    assert main([str(runs[0]), "--out", str(tmp_path / "curves.png")]) == 1
    assert "a/metrics.jsonl, line 1, is damaged: Extra data" in capsys.readouterr().err


def test_a_picture_and_a_page(runs, tmp_path, capsys):
    assert main([*map(str, runs), "--out", str(tmp_path / "curves.png")]) == 0
    assert "2 metrics of 2 run(s)" in capsys.readouterr().out
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000
    assert main([*map(str, runs), "--out", str(tmp_path / "curves.html")]) == 0
    page = (tmp_path / "curves.html").read_text()
    assert "<svg" in page
    assert "<td>train/loss</td><td>1</td><td>5</td>" in page
    assert "b&lt;i&gt;" in page and "<td>b<i>" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere holds no metrics.jsonl"),
        (["RUN", "--metrics", "accuracy"], "'accuracy' finds nothing in a"),
        (["RUN", "--out", "curves.gif"], "the ending must be one of .png"),
        (["RUN", "--out", "/dev/null/curves.png"], "File exists: '/dev/null'"),
        (["RUN", "--metrics", "("], "unterminated"),
    ],
)
def test_wrong_arguments_are_named(runs, arguments, message, capsys):
    assert main([str(runs[0]) if word == "RUN" else word for word in arguments]) == 1
    assert message in capsys.readouterr().err
