"""Small made copies of the data sets, in the layouts of their authors.

A maker writes a copy into a folder and returns the labels by key that a reader has to find in the
training and the test split.
"""

from __future__ import annotations

import csv
import json

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
