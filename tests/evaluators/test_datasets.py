"""The readers of the data sets on small made copies of each layout."""

from __future__ import annotations

import re

import pytest
from layouts import LAYOUTS, diving48, jester, mit, put, rareact, ssv2, table

from codecvit.evaluators.datasets import DATASETS, find_dataset


def by_key(split):
    return {example.item.key: example.labels for example in split.examples}


def test_every_data_set_has_a_made_copy():
    assert LAYOUTS.keys() == DATASETS.keys()
    assert {dataset.metric for dataset in DATASETS.values()} == {"top1", "mean_average_precision"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_reads_the_layout(name, tmp_path):
    expected = LAYOUTS[name](tmp_path)
    dataset, listing = find_dataset(name).read(tmp_path)
    assert (dataset.num_classes, dataset.metric) == (
        DATASETS[name].num_classes,
        DATASETS[name].metric,
    )
    if expected is not None:
        assert (by_key(listing.train), by_key(listing.test)) == expected
    for split in (listing.train, listing.test):
        assert split.unreadable == []
        assert split.examples and all(example.found for example in split.examples)
        assert all((tmp_path / example.item.source).exists() for example in split.examples)
    if name != "perception_test":
        assert len(listing.classes) == dataset.num_classes == len(set(listing.classes))


def test_segments_have_their_times(tmp_path):
    times = {}
    for name in ("epic_verb", "coin", "perception_test", "rareact"):
        root = tmp_path / name
        LAYOUTS[name](root)
        item = find_dataset(name).read(root)[1].train.examples[0].item
        times[name] = (item.start, item.end)
    assert times["epic_verb"] == (60.54, 3602.23)
    assert times["coin"] == (56.5, 85.75)
    assert times["perception_test"] == (29.5 / 30, 75.5 / 30)  # frames 30 to 75, both included
    assert times["rareact"] == (50, 60)


def test_class_names_follow_their_numbers(tmp_path):
    ssv2(tmp_path)
    assert find_dataset("ssv2").read(tmp_path)[1].classes[7] == "Moving something 7 ways"
    mit(tmp_path / "mit")
    assert find_dataset("mit").read(tmp_path / "mit")[1].classes[338] == "act338"


def test_rareact_shows_actions_only_and_splits_by_video(tmp_path):
    rareact(tmp_path)
    listing = find_dataset("rareact").read(tmp_path)[1]
    train, test = by_key(listing.train), by_key(listing.test)
    assert len(train) + len(test) == 149  # annotations 0 and 4 are left out
    assert 15 < len(test) < 50
    again = find_dataset("rareact").read(tmp_path)[1]
    assert by_key(again.test) == test


def test_a_missing_empty_or_rateless_file_is_not_found(tmp_path):
    ssv2(tmp_path)
    (tmp_path / "20bn-something-something-v2" / "42.webm").write_bytes(b"")
    (tmp_path / "20bn-something-something-v2" / "9.webm").unlink()
    listing = find_dataset("ssv2").read(tmp_path)[1]
    assert [example.found for example in listing.train.examples] == [True, False]
    assert [example.found for example in listing.test.examples] == [False]
    assert listing.test.examples[0].item.source == "20bn-something-something-v2/9"
    jester(tmp_path / "jester")
    (tmp_path / "jester" / "20bn-jester-v1" / "fps.txt").unlink()
    listing = find_dataset("jester").read(tmp_path / "jester")[1]
    assert not any(example.found for example in listing.train.examples)


def test_a_bad_line_is_named_and_costs_itself_alone(tmp_path):
    diving48(tmp_path)
    good = {"vid_name": "a", "label": 1}
    bad = [
        {"vid_name": "b"},
        {"vid_name": "c", "label": 48},
        {"vid_name": "d", "label": "x"},
        "e",
        good,
    ]
    put(tmp_path / "Diving48_V2_train.json", [good, *bad])
    split = find_dataset("diving48").read(tmp_path)[1].train
    assert by_key(split) == {"a": (1,)}
    assert split.unreadable == [
        "Diving48_V2_train.json, entry 1: field 'label' is missing",
        "Diving48_V2_train.json, entry 2: label 48 lies outside 0..47",
        "Diving48_V2_train.json, entry 3: label = 'x' is no int",
        "Diving48_V2_train.json, entry 4: fields of another type than expected",
        "Diving48_V2_train.json, entry 5: example 'a' occurs twice in this split",
    ]


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        (
            "epic_verb",
            "EPIC_100_train.csv",
            "00:01:00.54",
            "60.5",
            r"line 2: start_timestamp = '60.5' is no time",
        ),
        (
            "epic_verb",
            "EPIC_100_train.csv",
            "00:01:00.54",
            "02:00:00",
            r"line 2: segment from 7200 to 3602.23 seconds is empty",
        ),
        (
            "epic_noun",
            "EPIC_100_train.csv",
            ",299,",
            ",300,",
            r"line 2: label 300 lies outside 0..299",
        ),
        (
            "k400",
            "train.csv",
            "vid-00000002,9",
            "vid-00000002,x",
            r"line 4: time_start = 'x' is no int",
        ),
        (
            "ucf101",
            "trainlist01.txt",
            "Do004/",
            "Do404/",
            r"line 1: class 'Do404' is none of the 101 known",
        ),
        ("hmdb51", "brush_hair_test_split1.txt", ".avi 1", ".avi 7", "does not end in 0, 1 or 2"),
        ("jester", "jester-v1-train.csv", "Swiping 3", "Waving", r"line 1: class 'Waving' is none"),
        (
            "coin",
            "COIN.json",
            '"training"',
            '"both"',
            r"id_000: subset = 'both' is none of training",
        ),
        (
            "charades_ego",
            "CharadesEgo_v1_train.csv",
            "c092",
            "092x",
            r"line 2: action = '092x' is no int",
        ),
        (
            "mit",
            "trainingSet.csv",
            "mp4,act004",
            "mp4,act999",
            "line 1: class 'act999' is none of the 339",
        ),
        (
            "perception_test",
            "action_localisation_train.json",
            "[30, 75]",
            "[30]",
            "video_10, action 0: ",
        ),
    ],
)
def test_errors_name_file_line_and_field(name, file, old, new, message, tmp_path):
    LAYOUTS[name](tmp_path)
    (path,) = tmp_path.rglob(file)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    listing = find_dataset(name).read(tmp_path)[1]
    (found,) = listing.train.unreadable
    assert found.startswith(file)
    assert re.search(message, found), found


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        (
            "ssv2",
            "labels.json",
            None,
            "labels.json or something-something-v2-labels.json is missing",
        ),
        ("ssv2", "train.json", "[{", r"train.json: .*line 1"),
        ("ssv2", "train.json", "{}", "train.json: holds a dict, expected a list"),
        (
            "ssv2",
            "labels.json",
            '{"a": "0"}',
            "labels.json names 1 different classes .*expected 174",
        ),
        ("k400", "train.csv", "a,b\n1,2\n", "train.csv: the first line lacks the columns label"),
        ("mit", "moments_categories.txt", "a,0\n", "expected 339: it belongs to another version"),
        ("hmdb51", "brush_hair_test_split1.txt", None, "brush_hair_test_split1.txt is missing"),
        ("coin", "COIN.json", "{}", "has no object `database`"),
    ],
)
def test_a_file_that_is_missing_or_of_no_use_is_an_error(name, file, content, message, tmp_path):
    LAYOUTS[name](tmp_path)
    (path,) = tmp_path.rglob(file)
    if content is None:
        for other in path.parent.glob(path.name.replace("brush_hair", "*")):
            other.unlink()
    else:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        find_dataset(name).read(tmp_path)


def test_lists_of_ones_own(tmp_path):
    table(tmp_path / "train.csv", [["path", "label"], ["a/1.mp4", "run"], ["a/2.mp4", "jump"]])
    table(tmp_path / "val.csv", [["path", "label"], ["1.mp4", "run"]])
    put(tmp_path / "a" / "1.mp4")
    dataset, listing = find_dataset("csv:").read(tmp_path)
    assert (dataset.name, dataset.num_classes, dataset.metric) == ("csv", 2, "top1")
    assert listing.classes == ["jump", "run"]
    assert by_key(listing.train) == {"a/1.mp4": (1,), "a/2.mp4": (0,)}
    assert [example.found for example in listing.train.examples] == [True, False]
    table(tmp_path / "val.csv", [["path", "label"], ["1.mp4", "run;jump"], ["2.mp4", ""]])
    dataset, listing = find_dataset("csv:mine").read(tmp_path)
    assert (dataset.name, dataset.metric) == ("mine", "mean_average_precision")
    assert by_key(listing.test) == {"1.mp4": (1, 0), "2.mp4": ()}


def test_lists_of_ones_own_for_a_known_data_set(tmp_path):
    rows = [["path", "label", "start", "end"], ["a.mp4", "62", "1", "2.5"], ["b.mp4", "63", "", ""]]
    table(tmp_path / "train.csv", rows)
    table(tmp_path / "test.csv", [["path", "label"], ["c.mp4", "0"], ["d.mp4", "1;2"]])
    dataset, listing = find_dataset("csv:perception_test").read(tmp_path)
    assert (dataset.name, dataset.num_classes, dataset.metric) == ("perception_test", 63, "top1")
    assert by_key(listing.train) == {"a.mp4@1-2.5": (62,)}
    assert listing.train.examples[0].item.end == 2.5
    assert listing.train.unreadable == ["b.mp4: label 63 lies outside 0..62"]
    assert listing.test.unreadable == ["d.mp4: 2 labels where one is expected"]


def test_class_folders(tmp_path):
    for split, names in (("train", ("run/1.mp4", "jump/b/2.webm")), ("test", ("run/3.avi",))):
        for name in names:
            put(tmp_path / split / name)
    put(tmp_path / "train" / "run" / "notes.txt", "no video")
    dataset, listing = find_dataset("folders:").read(tmp_path)
    assert (dataset.num_classes, dataset.metric) == (2, "top1")
    assert by_key(listing.train) == {"jump/b/2.webm": (0,), "run/1.mp4": (1,)}
    assert by_key(listing.test) == {"run/3.avi": (1,)}


def test_wrong_names_and_roots(tmp_path):
    with pytest.raises(ValueError, match="data set 'ssv3' is not known; give csv:NAME or folders"):
        find_dataset("ssv3")
    with pytest.raises(ValueError, match="is no folder"):
        find_dataset("ssv2").read(tmp_path / "none")
    with pytest.raises(ValueError, match=r"train.csv is missing in"):
        find_dataset("csv:").read(tmp_path)
    table(tmp_path / "train.csv", [["path", "label", "verb"], ["a.mp4", "run", "x"]])
    table(tmp_path / "test.csv", [["path", "label"], ["a.mp4", "run"]])
    with pytest.raises(ValueError, match="columns verb are unknown"):
        find_dataset("csv:").read(tmp_path)
