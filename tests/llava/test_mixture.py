"""Recipes: which rows of which files, how often, from where."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from codecvit.codec.llava.recipe import Strategy, read_recipe
from codecvit.codec.llava.rows import RowError
from codecvit.llava.data.mixture import load_mixture
from codecvit.llava.data.row_visuals import KINDS

from .made import turns, video_row, write_rows


def row(number, **fields):
    return {"id": number, "conversations": turns("Why?", "So."), **fields}


@pytest.fixture
def recipe(tmp_path):
    """recipe(text): path of a YAML file beside ten.jsonl and five.json of so many rows."""
    write_rows(tmp_path / "ten.jsonl", [row(i) for i in range(10)])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "five.json").write_text(json.dumps([row(i) for i in range(100, 105)]))

    def write(text):
        path = tmp_path / "mix.yaml"
        path.write_text(text)
        return str(path)

    return write


def ids(mixture):
    return [mixture[i].row["id"] for i in range(len(mixture))]


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        ("all", [*range(10)]),
        ("first:3", [0, 1, 2]),
        ("end:2", [8, 9]),
        ("first:25%", [0, 1, 2]),  # rounded up, as the published trainer does
        ("end:70%", [3, 4, 5, 6, 7, 8, 9]),
        ("first:100%", [*range(10)]),
        ("end:0.1%", [9]),
    ],
)
def test_strategies(recipe, strategy, wanted):
    path = recipe(f"- json_path: ten.jsonl\n  sampling_strategy: {strategy}\n")
    assert ids(load_mixture(path)) == wanted


def test_random_rows_depend_on_the_seed_and_the_file_alone(recipe, tmp_path):
    one = recipe("- {json_path: ten.jsonl, sampling_strategy: 'random:4'}")
    drawn = ids(load_mixture(one, seed=1))
    assert len(set(drawn)) == 4 and drawn == sorted(drawn)
    draws = [ids(load_mixture(one, seed=seed)) for seed in range(25)]
    assert draws[1] == drawn and {i for draw in draws for i in draw} == set(range(10))
    two = recipe(
        "- json_path: sub/five.json\n- {json_path: ten.jsonl, sampling_strategy: 'random:40%'}"
    )
    assert ids(load_mixture(two, seed=1))[5:] == drawn
    (tmp_path / "same.jsonl").write_text((tmp_path / "ten.jsonl").read_text())
    same = recipe("- {json_path: same.jsonl, sampling_strategy: 'random:4'}")
    assert draws != [ids(load_mixture(same, seed=seed)) for seed in range(25)]


def test_json_and_jsonl_repeated_rows_and_the_published_form(recipe):
    path = recipe(
        "datasets:\n- json_path: sub/five.json\n  repeat: 3\n  sampling_strategy: first:2\n"
        "- json_path: ten.jsonl\n"
    )
    mixture = load_mixture(path)
    assert ids(mixture) == [100, 100, 100, 101, 101, 101, *range(10)]
    assert len(mixture) == 16
    assert mixture[4].source == "sub/five.json row 1 (id 101)"
    assert mixture.shapes.kind.tolist() == [KINDS.index("text")] * 16


def test_folders(recipe, tmp_path):
    path = recipe(
        "- json_path: ten.jsonl\n  image_folder: pics\n"
        "- json_path: sub/five.json\n  video_folder: /else/clips\n"
    )
    mixture, root = load_mixture(path), str(tmp_path)
    assert vars(mixture[0].folders) == {
        "mosaics": root,
        "images": f"{root}/pics",
        "videos": root,
    }
    assert vars(mixture[10].folders) == {
        "mosaics": f"{root}/sub",
        "images": f"{root}/sub",
        "videos": "/else/clips",
    }
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / "mix.yaml"
    moved.write_text((tmp_path / "mix.yaml").read_text())
    assert ids(load_mixture(str(moved), root=root)) == ids(mixture)


def test_what_rows_hold(tmp_path):
    rows = [
        row(0),
        row(1, image="a.jpg", width=640, height=480),
        row(2, image=["a.jpg", "b.jpg"]),
        row(3, images=["a.jpg"]),
        video_row("a.mp4"),
        row(5, image=["1", "2", "3"], positions_thw="p.npy"),
        row(6, image=7),
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.jsonl").open("a").write('{"id": 7\n')
    (tmp_path / "mix.yaml").write_text("- json_path: rows.jsonl")
    mixture = pickle.loads(pickle.dumps(load_mixture(str(tmp_path / "mix.yaml"))))  # noqa: S301
    shapes = mixture.shapes
    kinds = [KINDS[kind] for kind in shapes.kind]
    assert kinds == ["text", "image", "images", "image", "video", "video", "text", "text"]
    assert shapes.images.tolist() == [0, 1, 2, 1, 0, 3, 0, 0]
    assert shapes.packed.tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert (shapes.height[1], shapes.width[1]) == (480, 640)
    assert [mixture[i].row for i in range(6)] == rows[:6]
    for index, reason in ((6, "image = 7"), (7, "is no JSON")):
        broken = mixture[index].row
        assert isinstance(broken, RowError) and reason in str(broken)
        assert mixture[index].source == f"rows.jsonl row {index}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- json_path: ten.jsonl\n  weight: 2", r"entry 0 \(ten.jsonl\): unknown key 'weight'"),
        ("- {}\n", "entry 0: has no json_path"),
        ("- json_path: 3", r"entry 0 \(3\): json_path = 3 must be a text"),
        ("- ten.jsonl", "entry 0: 'ten.jsonl' must be a mapping"),
        ("- json_path: ten.jsonl\n- json_path: b\n  repeat: 0", r"entry 1 \(b\): repeat = 0"),
        ("- json_path: b\n  repeat: 1.5", "repeat = 1.5"),
        ("- json_path: b\n  repeat: true", "repeat = True"),
        ("- json_path: b\n  sampling_strategy: some", "sampling_strategy = 'some' must be all"),
        ("- json_path: b\n  sampling_strategy: 'first:0'", "first:0"),
        ("- json_path: b\n  sampling_strategy: 'first:-1'", "first:-1"),
        ("- json_path: b\n  sampling_strategy: 'end:101%'", "end:101%"),
        ("- json_path: b\n  sampling_strategy: 'all:3'", "all:3"),
        ("data:\n- json_path: b", "must hold a list of entries"),
        ("datasets: []", "must hold a list of entries"),
        ("", "must hold a list of entries"),
        ("- [", "is no YAML"),
        ("- json_path: !!python/name:os.system b", "is no YAML"),
    ],
)
def test_recipes_that_are_none(recipe, text, message):
    path = recipe(text)
    with pytest.raises(ValueError, match=message) as error:
        read_recipe(path)
    assert str(error.value).startswith(path)


def test_files_that_do_not_have_what_is_asked_for(recipe, tmp_path):
    path = recipe("- json_path: ten.jsonl\n  sampling_strategy: first:11\n")
    with pytest.raises(ValueError, match=r"ten.jsonl: sampling_strategy asks for 11 rows of 10"):
        load_mixture(path)
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"none.jsonl holds no rows"):
        load_mixture(recipe("- json_path: none.jsonl"))
    with pytest.raises(FileNotFoundError):
        load_mixture(recipe("- json_path: away.jsonl"))


def test_shares_are_exact():
    for percent in range(1, 101):
        taken = Strategy.parse(f"first:{percent}%").take(100, 0, "")
        np.testing.assert_array_equal(taken, np.arange(percent))
