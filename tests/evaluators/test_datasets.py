"""The readers of the data sets on small made copies of each layout."""

from __future__ import annotations

import csv
import json
import re

import pytest

from codecvit.evaluators.datasets import DATASETS, find_dataset

VIDEO = b"not empty: nothing is decoded here"


def put(path, content=VIDEO):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def table(path, rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def ssv2(root):
    names = [f"Moving something {i} ways" for i in range(174)]
    put(root / "labels" / "labels.json", {name: str(i) for i, name in enumerate(names)})
    for name, ids in (("train", ("78687", "42")), ("validation", ("9",))):
        entries = [
            {
                "id": video,
                "label": "moving a cup 7 ways",
                "template": "Moving [something] 7 ways",
                "placeholders": ["a cup"],
            }
            for video in ids
        ]
        put(root / "labels" / f"{name}.json", entries)
        for video in ids:
            put(root / "20bn-something-something-v2" / f"{video}.webm")
    return {"78687": (7,), "42": (7,)}, {"9": (7,)}


def diving48(root):
    put(root / "Diving48_vocab.json", [["Back", "15som", f"{i}Twis", "FREE"] for i in range(48)])
    for name, video, label in (("train", "_8Vy3dlHg2w_00000", 26), ("test", "o3eCwqG_00003", 0)):
        entry = {"vid_name": video, "label": label, "start_frame": 0, "end_frame": 163}
        put(root / f"Diving48_V2_{name}.json", [entry])
        put(root / "rgb" / f"{video}.mp4")
    return {"_8Vy3dlHg2w_00000": (26,)}, {"o3eCwqG_00003": (0,)}


def perception_test(root):
    for name, video in (("train", "video_10"), ("valid", "video_6")):
        segments = [
            {
                "id": 3,
                "label": "Putting something into something",
                "parent_objects": [1],
                "timestamps": [1000000, 2500000],
                "frame_ids": [30, 75],
                "label_id": 62,
            },
            {"id": 4, "label": "Other", "timestamps": [0, 1], "frame_ids": [0, 9], "label_id": 0},
        ]
        metadata = {"split": name, "video_id": video, "frame_rate": 30.0, "num_frames": 900}
        entry = {"metadata": metadata, "action_localisation": segments}
        put(root / f"action_localisation_{name}.json", {video: entry})
        put(root / "videos" / f"{video}.mp4")
    return {"video_10_0": (62,), "video_10_1": (0,)}, {"video_6_0": (62,), "video_6_1": (0,)}


def _charades_ego(view):
    def make(root):
        classes = "".join(f"c{i:03d} Doing thing {i}\n" for i in range(157))
        put(root / "Charades_v1_classes.txt", classes)
        header = ["id", "subject", "actions", "length", "egocentric", "charades_video"]
        actions = {"train": "c092 11.90 21.20;c147 0.00 12.60;c092 1.0 2.0", "test": ""}
        for name, video in (("train", "00HFPEGO"), ("test", "00T1EEGO")):
            row = [video, "BR11", actions[name], "30.1", "Yes", "00HFP"]
            table(root / "CharadesEgo" / f"CharadesEgo_v1_{name}{view}.csv", [header, row])
            put(root / "CharadesEgo_v1_480" / f"{video}.mp4")
        return {"00HFPEGO": (92, 147)}, {"00T1EEGO": ()}

    return make


def _epic(part, label):
    def make(root):
        notes = root / "epic-kitchens-100-annotations"
        for name, count in (("verb", 97), ("noun", 300)):
            rows = [[i, f"{name}-{i}", f"['{name}-{i}']"] for i in range(count)]
            table(notes / f"EPIC_100_{name}_classes.csv", [["id", "key", "instances"], *rows])
        header = ["narration_id", "participant_id", "video_id", "narration_timestamp"]
        header += ["start_timestamp", "stop_timestamp", "start_frame", "stop_frame", "narration"]
        header += ["verb", "verb_class", "noun", "noun_class", "all_nouns", "all_noun_classes"]
        for name, person in (("train", "P01"), ("validation", "P02")):
            row = [f"{person}_102_0", person, f"{person}_102", "00:00:01.100", "00:01:00.54"]
            row += ["01:00:02.23", 27, 111, "take knife", "take", 96, "knife", 299]
            row += ["['knife', 'plate']", "[299, 2]"]
            table(notes / f"EPIC_100_{name}.csv", [header, row])
            put(root / person / "videos" / f"{person}_102.MP4")
        return {"P01_102_0": (label,)}, {"P02_102_0": (label,)}

    return make


def _kinetics(num_classes, header, second, place):
    def make(root):
        names = [f"doing thing {i:03d}" for i in range(num_classes)]
        rows = [[name, f"vid-{i:08d}", 7 + i, 17 + i, "train"] for i, name in enumerate(names)]
        table(root / "annotations" / "train.csv", [header, *rows])
        table(root / "annotations" / second, [header, [names[3], "-_x", 84, 94, "val", 0]])
        for name, video, start, *_ in rows:
            folder = place.format(split="train", name=name)
            put(root / folder / f"{video}_{start:06d}_{start + 10:06d}.mp4")
        put(root / place.format(split="val", name=names[3]) / "-_x_000084_000094.mp4")
        train = {f"vid-{i:08d}_{7 + i:06d}_{17 + i:06d}": (i,) for i in range(num_classes)}
        return train, {"-_x_000084_000094": (3,)}

    return make


def _hmdb51(number):
    def make(root):
        names = ["brush_hair", *(f"do_{i:02d}" for i in range(50))]
        train, test = {}, {}
        for label, name in enumerate(names):
            videos = [f"{name}_#1!_med_0.avi", f"{name}_(2)_goo_1.avi", f"{name}_3_bad.avi"]
            uses = [number % 3, (number + 1) % 3, (number + 2) % 3]
            for other in (1, 2, 3):
                turned = uses if other == number else [0, 0, 0]
                lines = [f"{v} {use} \n" for v, use in zip(videos, turned, strict=True)]
                split_file = f"{name}_test_split{other}.txt"
                put(root / "testTrainMulti_7030_splits" / split_file, "".join(lines))
            for video, use in zip(videos, uses, strict=True):
                put(root / "hmdb51_org" / name / video)
                if use:
                    key = f"{name}/{video[:-4]}".replace("#", "_").replace("!", "_")
                    key = key.replace("(", "_").replace(")", "_")
                    (train if use == 1 else test)[key] = (label,)
        return train, test

    return make


def _ucf101(number):
    def make(root):
        lists = root / "ucfTrainTestlist"
        names = [f"Do{i:03d}" for i in range(101)]
        put(lists / "classInd.txt", "".join(f"{i + 1} {name}\n" for i, name in enumerate(names)))
        put(lists / f"trainlist{number:02d}.txt", "Do004/v_Do004_g08_c01.avi 5\r\n")
        put(lists / f"testlist{number:02d}.txt", "Do100/v_Do100_g01_c01.avi\r\n")
        put(root / "UCF-101" / "Do004" / "v_Do004_g08_c01.avi")
        put(root / "UCF-101" / "Do100" / "v_Do100_g01_c01.avi")
        return {"Do004/v_Do004_g08_c01": (4,)}, {"Do100/v_Do100_g01_c01": (100,)}

    return make


def coin(root):
    entries = {}
    for i in range(180):
        subset = "testing" if i == 131 else "training"
        entries[f"id_{i:03d}"] = {
            "duration": 131.03,
            "class": f"Task{i:03d}",
            "video_url": "https://example.org",
            "start": 56.5,
            "annotation": [{"id": "212", "segment": [60.0, 69.0], "label": "take out"}],
            "subset": subset,
            "end": 85.75,
            "recipe_type": i,
        }
        put(root / "videos" / str(i) / f"id_{i:03d}.mp4")
    put(root / "COIN.json", {"database": entries})
    train = {f"id_{i:03d}": (i,) for i in range(180) if i != 131}
    return train, {"id_131": (131,)}


def jester(root):
    names = [f"Swiping {i}" for i in range(27)]
    put(root / "jester-v1-labels.csv", "".join(f"{name}\n" for name in names))
    table(root / "jester-v1-train.csv", [["34870", "Swiping 3"]], ";")
    table(root / "jester-v1-validation.csv", [["9223", "Swiping 26"]], ";")
    for video in ("34870", "9223"):
        for frame in (1, 2, 3):
            put(root / "20bn-jester-v1" / video / f"{frame:05d}.jpg")
    put(root / "20bn-jester-v1" / "fps.txt", "12")
    return {"34870": (3,)}, {"9223": (26,)}


def rareact(root):
    header = ["id", "video_id", "start", "end", "class_id", "verb", "noun", "annotation"]
    rows = [[i, f"video{i:03d}", 50, 60, i, "cut", f"noun{i}", 1] for i in range(149)]
    for number, annotation in ((149, 0), (150, 4)):
        rows.append([number, "video000", 70, 80, 0, "cut", "noun0", annotation])
    table(root / "rareact.csv", [header, *rows])
    for i in range(149):
        put(root / "rareact" / f"video{i:03d}.mp4")
    # The split is our own, and tested below.


def mit(root):
    put(root / "moments_categories.txt", "".join(f"act{i:03d},{i}\n" for i in range(339)))
    table(root / "trainingSet.csv", [["act004/getty-id_4.mp4", "act004", 4, 0]])
    table(root / "validationSet.csv", [["act338/yt-5of6ffo6-Bw_205.mp4", "act338", 3, 1]])
    put(root / "training" / "act004" / "getty-id_4.mp4")
    put(root / "validation" / "act338" / "yt-5of6ffo6-Bw_205.mp4")
    return {"act004/getty-id_4": (4,)}, {"act338/yt-5of6ffo6-Bw_205": (338,)}


K400_HEADER = ["label", "youtube_id", "time_start", "time_end", "split", "is_cc"]
LAYOUTS = {
    "ssv2": ssv2,
    "diving48": diving48,
    "perception_test": perception_test,
    "charades_ego": _charades_ego(""),
    "charades_ego_1st": _charades_ego("_only1st"),
    "charades_ego_3rd": _charades_ego("_only3rd"),
    "epic_verb": _epic("verb", 96),
    "epic_noun": _epic("noun", 299),
    "k400": _kinetics(400, K400_HEADER, "val.csv", "{split}/{name}"),
    "k600": _kinetics(600, K400_HEADER[:5], "validate.csv", "{split}"),
    "k700": _kinetics(700, K400_HEADER[:5], "val.csv", "videos"),
    "hmdb51": _hmdb51(1),
    "hmdb51_split2": _hmdb51(2),
    "hmdb51_split3": _hmdb51(3),
    "ucf101": _ucf101(1),
    "ucf101_split2": _ucf101(2),
    "ucf101_split3": _ucf101(3),
    "coin": coin,
    "jester": jester,
    "rareact": rareact,
    "mit": mit,
}


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
