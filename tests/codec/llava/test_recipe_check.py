"""`codecvit llava check --recipe` names all that a data tree lacks."""

from __future__ import annotations

import json
import shutil

import pytest

from codecvit.codec.llava.cli import main

from .helpers import read_rows, video_row

IMAGE_ROW = {"id": "i", "image": "pics/a.jpg", "conversations": [{"from": "human", "value": "?"}]}
RECIPE = """
- json_path: out/train.jsonl
- json_path: images.jsonl
- json_path: videos.json
  video_folder: clips
"""


@pytest.fixture
def tree(tmp_path, raw, make, clips):
    """A folder that holds all that mix.yaml names: packs, images, videos."""
    status, _ = make(raw([video_row("a/clip.mp4", "a"), video_row("b/clip.mp4", "b")]))
    assert status == 0
    shutil.copytree(clips, tmp_path / "clips")
    (tmp_path / "pics").mkdir()
    for name in "abc":
        (tmp_path / "pics" / f"{name}.jpg").write_bytes(b"x")
    rows = [IMAGE_ROW, IMAGE_ROW, {**IMAGE_ROW, "image": ["pics/b.jpg", "pics/c.jpg"]}, {}]
    rows[3] = {"id": "t", "conversations": []}
    (tmp_path / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    videos = [video_row("one.mp4"), video_row("three.mp4"), video_row("long.mp4")]
    (tmp_path / "videos.json").write_text(json.dumps(videos))
    (tmp_path / "mix.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def check(tree, capsys):
    """check(*options): (exit status, lines)."""

    def run(*options, recipe=None):
        if recipe is not None:
            (tree / "mix.yaml").write_text(recipe)
        capsys.readouterr()
        options = ["--recipe", tree / "mix.yaml", "--workers", "0", *options]
        status = main(["check", *map(str, options)])
        return status, capsys.readouterr().out.splitlines()

    return run


def test_a_whole_tree_lacks_nothing(check, tree):
    assert check() == (0, [f"{tree}/mix.yaml: no problems"])
    (tree / "elsewhere").mkdir()
    (tree / "elsewhere" / "mix.yaml").write_text(RECIPE)
    assert main(["check", "--recipe", f"{tree}/elsewhere/mix.yaml", "--root", str(tree)]) == 0


def test_all_that_lacks_is_named_and_counted(check, tree):
    (tree / "pics" / "a.jpg").unlink()
    (tree / "pics" / "c.jpg").unlink()
    (tree / "clips" / "three.mp4").unlink()
    next(tree.glob("out/images/*/*a__clip__*/clip_001.jpg")).unlink()
    status, lines = check(recipe=RECIPE + "- json_path: away.jsonl\n")
    pack = next(tree.glob("out/images/*/*a__clip__*")).relative_to(tree)
    assert status == 1 and lines == [
        "JSON: 1 of 4",
        "  away.jsonl: does not exist (entry 3)",
        "PACK: 1 of 2",
        f"  {pack}: clip_001.jpg is missing (out/train.jsonl row 0)",
        "IMAGE: 2 of 3",
        "  pics/a.jpg: does not exist (2 rows, first images.jsonl row 0)",
        "  pics/c.jpg: does not exist (images.jsonl row 2)",
        "VIDEO: 1 of 3",
        "  clips/three.mp4: does not exist (videos.json row 1)",
        f"{tree}/mix.yaml: 5 problems (JSON 1, PACK 1, IMAGE 2, VIDEO 1)",
    ]


def test_a_pack_that_is_gone_as_a_whole(check, tree):
    shutil.rmtree(tree / "out" / "images")
    status, lines = check()
    assert status == 1 and lines[0] == "PACK: 2 of 2"
    assert all("lacks positions_thw.npy" in line for line in lines[1:3])


def test_only_rows_that_count_are_looked_for(check, tree):
    (tree / "clips" / "long.mp4").unlink()  # that of the last row
    for strategy, status in (
        ("first:2", 0),
        ("first:67%", 1),
        ("end:1", 1),
        ("random:1", 1),  # which row it will be depends on the training
        ("all", 1),
    ):
        text = f"- {{json_path: videos.json, video_folder: clips, sampling_strategy: '{strategy}'}}"
        assert check(recipe=text)[0] == status, strategy


def test_files_with_too_few_rows_or_none(check, tree):
    (tree / "none.jsonl").write_text("")
    (tree / "no.json").write_text('[{"id"')
    text = "- {json_path: images.jsonl, sampling_strategy: 'first:9'}\n"
    status, lines = check(recipe=f"{text}- json_path: none.jsonl\n- json_path: no.json\n")
    assert status == 1 and lines[0] == "JSON: 3 of 3"
    assert "asks for 9 rows of 4 (entry 0)" in lines[1] and "holds no rows (entry 1)" in lines[2]
    assert "is no JSON array" in lines[3]


def test_packs_of_other_options_and_of_other_images(check, tree, raw, make):
    status, _ = make(raw([video_row("long.mp4")]), "--padding", "exclude", out="other")
    assert status == 0
    text = "- json_path: out/train.jsonl\n- json_path: other/train.jsonl\n"
    status, lines = check(recipe=text)
    assert status == 1 and lines[0] == "CONFIG: 2 of 3"
    assert sorted(line[:28] for line in lines[1:3]) == ["  1 packs were made with the"] + [
        "  2 packs were made with the"
    ]
    rows = read_rows(tree / "out")
    rows[0]["image"] = rows[0]["image"][::-1]
    (tree / "out" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, lines = check(recipe="- json_path: out/train.jsonl")
    assert status == 1 and "its mosaics are not the images of its rows" in lines[1]


def test_malformed_rows(check, tree):
    rows = ["{", '{"image": 3}', '{"video": ["a", "b"]}', '{"positions_thw": 1}']
    (tree / "rows.jsonl").write_text("\n".join(rows))
    status, lines = check(recipe="- json_path: rows.jsonl")
    assert status == 1 and lines[0] == "ROW: 4 of 4"
    assert all(f"  rows.jsonl row {i}: " in lines[i + 1] for i in range(4))


def test_unusable_recipes_and_commands(check, tree, capsys):
    assert check(recipe="- jsonpath: a")[0] == 2
    assert main(["check", "--recipe", str(tree / "none.yaml")]) == 2
    for arguments in ([], [str(tree / "out" / "train.jsonl"), "--recipe", str(tree / "mix.yaml")]):
        with pytest.raises(SystemExit):
            main(["check", *arguments])
        assert "give either a JSONL, a folder of assets, or --recipe" in capsys.readouterr().err
