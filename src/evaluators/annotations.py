"""Readers of the annotation files that authors of video data sets hand out.

Each takes the folder of a download and the number of classes and gives a `Listing`. Where the
layouts come from stands in datasets.py; docs/probe_data.md shows the trees.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..data.annotation_files import Files, annotation_file, csv_rows, read_json, text_lines
from ..data.labels import sort_classes
from ..data.sources import EXTENSIONS
from .listing import Listing, Split, check_classes, class_number, number


def something_something(root: Path, num_classes: int) -> Listing:
    """Something-Something V2: labels.json, train.json, validation.json; videos NUMBER.webm."""
    prefix = "something-something-v2-"
    label_file = annotation_file(root, "labels.json", f"{prefix}labels.json")
    texts = read_json(label_file, dict)
    numbers = {name: number(text, f"{label_file.name}: {name}") for name, text in texts.items()}
    classes = check_classes(sorted(numbers, key=numbers.get), num_classes, str(label_file))
    splits = _splits(root, num_classes)
    for split, name in zip(splits, ("train", "validation"), strict=True):
        file = annotation_file(root, f"{name}.json", f"{prefix}{name}.json")
        for where, entry in _entries(file):
            with split.line(where):
                template = entry["template"].replace("[", "").replace("]", "")
                folders = ("20bn-something-something-v2", "videos")
                label = class_number(numbers, template)
                split.add(str(entry["id"]), _below(folders, str(entry["id"])), [label])
    return Listing(classes, *splits)


def diving48(root: Path, num_classes: int) -> Listing:
    """Diving48, version 2 of its labels: Diving48_V2_{train,test}.json, rgb/NAME.mp4."""
    vocabulary = annotation_file(root, "Diving48_vocab.json")
    names = ["-".join(map(str, parts)) for parts in read_json(vocabulary, list)]
    splits = _splits(root, num_classes)
    for split, name in zip(splits, ("train", "test"), strict=True):
        for where, entry in _entries(annotation_file(root, f"Diving48_V2_{name}.json")):
            with split.line(where):
                video = entry["vid_name"]
                split.add(
                    video, _below(("rgb", "videos"), video), [number(entry["label"], "label")]
                )
    return Listing(check_classes(names, num_classes, str(vocabulary)), *splits)


def charades_ego(root: Path, num_classes: int, *, view: str = "") -> Listing:
    """Charades-Ego: CharadesEgo_v1_{train,test}VIEW.csv, view "", "_only1st" or "_only3rd".

    An example is a whole video with the set of its actions, which may be empty.
    """
    class_file = annotation_file(root, "Charades_v1_classes.txt")
    names = [line.partition(" ")[2] for _, line in text_lines(class_file)]
    splits = _splits(root, num_classes)
    folders = ("CharadesEgo_v1_480", "CharadesEgo_v1", "videos")
    for split, name in zip(splits, ("train", "test"), strict=True):
        file = annotation_file(root, f"CharadesEgo_v1_{name}{view}.csv")
        for where, row in csv_rows(file, ("id", "actions")):
            with split.line(where):
                actions = [action for action in row["actions"].split(";") if action]
                labels = {
                    number(action.split()[0].removeprefix("c"), "action") for action in actions
                }
                split.add(row["id"], _below(folders, row["id"]), sorted(labels))
    return Listing(check_classes(names, num_classes, str(class_file)), *splits)


def epic_kitchens(root: Path, num_classes: int, *, part: str) -> Listing:
    """EPIC-KITCHENS-100: segments of long videos, by "verb" or "noun"; tested on its validation."""
    class_file = annotation_file(
        root, f"EPIC_100_{part}_classes.csv", f"EPIC_100_{part}_classes_v2.csv"
    )
    rows = csv_rows(class_file, ("id", "key"))
    names = {number(row["id"], f"{where}: id"): row["key"] for where, row in rows}
    classes = check_classes([names[i] for i in sorted(names)], num_classes, str(class_file))
    splits = _splits(root, num_classes)
    for split, name in zip(splits, ("train", "validation"), strict=True):
        file = annotation_file(root, f"EPIC_100_{name}.csv")
        for where, row in csv_rows(file, ("narration_id", "video_id", f"{part}_class")):
            with split.line(where):
                video, person = row["video_id"], row["participant_id"]
                folders = (f"{person}/videos", f"EPIC-KITCHENS/{person}/videos", person, "videos")
                split.add(
                    row["narration_id"],
                    _below(folders, video),
                    [number(row[f"{part}_class"], f"{part}_class")],
                    _clock(row["start_timestamp"], "start_timestamp"),
                    _clock(row["stop_timestamp"], "stop_timestamp"),
                )
    return Listing(classes, *splits)


def kinetics(root: Path, num_classes: int) -> Listing:
    """Kinetics: train.csv, val.csv; clips ID_START_END.mp4, with or without class folders."""
    files = [annotation_file(root, "train.csv"), annotation_file(root, "val.csv", "validate.csv")]
    columns = ("label", "youtube_id", "time_start", "time_end")
    names = {row["label"] for _, row in csv_rows(files[0], columns) if row.get("label")}
    classes = check_classes(sorted(names), num_classes, str(files[0]))
    numbers = {name: i for i, name in enumerate(classes)}
    splits = _splits(root, num_classes)
    places = (("train", "videos"), ("val", "validate", "validation", "videos"))
    for split, file, folders in zip(splits, files, places, strict=True):
        for where, row in csv_rows(file, columns):
            with split.line(where):
                label = class_number(numbers, row["label"])
                times = (number(row[f"time_{edge}"], f"time_{edge}") for edge in ("start", "end"))
                name = "_".join([row["youtube_id"], *(f"{seconds:06d}" for seconds in times)])
                folder_names = (row["label"], row["label"].replace(" ", "_"))
                deeper = [f"{folder}/{below}" for folder in folders for below in folder_names]
                split.add(name, _below((*folders, *deeper), name), [label])
    return Listing(classes, *splits)


def hmdb51(root: Path, num_classes: int, *, split_number: int = 1) -> Listing:
    """HMDB51: per class a file CLASS_test_splitN.txt of "NAME.avi USE", 1 train, 2 test, 0 none."""
    ending = f"_test_split{split_number}.txt"
    folder = annotation_file(root, f"brush_hair{ending}").parent
    files = sorted(folder.glob(f"*{ending}"))
    classes = [file.name.removesuffix(ending) for file in files]
    splits = _splits(root, num_classes)
    for label, (name, file) in enumerate(zip(classes, files, strict=True)):
        for where, text in text_lines(file):
            video, _, use = text.rpartition(" ")
            if use == "0":
                continue
            split = splits[use == "2"]
            with split.line(where):
                if use not in ("1", "2"):
                    raise ValueError(f"{text!r} does not end in 0, 1 or 2")
                stem = _stem(video.strip())
                folders = (f"hmdb51_org/{name}", f"videos/{name}", name)
                split.add(f"{name}/{stem}", _below(folders, stem), [label])
    return Listing(check_classes(classes, num_classes, f"{folder}/*{ending}"), *splits)


def ucf101(root: Path, num_classes: int, *, split_number: int = 1) -> Listing:
    """UCF101: classInd.txt, trainlistNN.txt, testlistNN.txt; videos UCF-101/CLASS/NAME.avi."""
    class_file = annotation_file(root, "classInd.txt")
    lines = [text.partition(" ") for _, text in text_lines(class_file)]
    numbered = {number(index, f"{class_file.name}: number") - 1: name for index, _, name in lines}
    classes = [numbered[i] for i in sorted(numbered)]
    check_classes(classes, num_classes, str(class_file))
    numbers = {name: i for i, name in enumerate(classes)}
    splits = _splits(root, num_classes)
    for split, name in zip(splits, ("train", "test"), strict=True):
        listed = f"{name}list{split_number:02d}.txt"
        for where, text in text_lines(annotation_file(root, listed)):
            with split.line(where):
                video = _stem(text.split()[0])  # a training line ends in the class, from 1
                label = class_number(numbers, posixpath.dirname(video))
                split.add(video, _below(("UCF-101", "videos"), video), [label])
    return Listing(classes, *splits)


def coin(root: Path, num_classes: int) -> Listing:
    """COIN: COIN.json; an example is the annotated stretch of a video, its class the task."""
    file = annotation_file(root, "COIN.json")
    entries = read_json(file, dict).get("database")
    if not isinstance(entries, dict):
        raise ValueError(f"{file}: has no object `database`")
    names = {_field(entry, "class") for entry in entries.values()} - {None}
    classes = check_classes(sorted(names), num_classes, str(file))
    numbers = {name: i for i, name in enumerate(classes)}
    train, test = _splits(root, num_classes)
    by_name = {"training": train, "validation": test, "testing": test}
    for video, entry in entries.items():
        split = by_name.get(_field(entry, "subset"), train)
        with split.line(f"{file.name}, {video}"):
            if entry["subset"] not in by_name:
                raise ValueError(f"subset = {entry['subset']!r} is none of {', '.join(by_name)}")
            label = class_number(numbers, entry["class"])
            folders = (f"videos/{entry['recipe_type']}", "videos")
            times = [number(entry[edge], edge, float) for edge in ("start", "end")]
            split.add(video, _below(folders, video), [label], *times)
    return Listing(classes, train, test)


def jester(root: Path, num_classes: int) -> Listing:
    """Jester: jester-v1-{labels,train,validation}.csv, fields split by ";"; folders of JPEGs."""
    class_file = annotation_file(root, "jester-v1-labels.csv")
    classes = [text for _, text in text_lines(class_file)]
    check_classes(classes, num_classes, str(class_file))
    numbers = {name: i for i, name in enumerate(classes)}
    splits = _splits(root, num_classes)
    for split, name in zip(splits, ("train", "validation"), strict=True):
        file = annotation_file(root, f"jester-v1-{name}.csv")
        for where, row in csv_rows(file, ("id", "label"), header=False, delimiter=";"):
            with split.line(where):
                label = class_number(numbers, row["label"])
                split.add(row["id"], _below(("20bn-jester-v1", "videos"), row["id"]), [label])
    return Listing(classes, *splits)


def rareact(root: Path, num_classes: int) -> Listing:
    """RareAct: the segments of rareact.csv that show their action, split by video.

    There is no published training split. Of every five videos, by a hash of their names, one is for
    testing.
    """
    file = annotation_file(root, "rareact.csv")
    columns = ("id", "video_id", "start", "end", "class_id", "verb", "noun", "annotation")
    rows = list(csv_rows(file, columns))
    names = {row["class_id"]: f"{row['verb']} {row['noun']}" for _, row in rows if len(row) == 8}
    classes = check_classes([names[i] for i in sort_classes(set(names))], num_classes, str(file))
    train, test = _splits(root, num_classes)
    for where, row in rows:
        digest = hashlib.sha256(row.get("video_id", "").encode()).digest()
        split = train if digest[0] % 5 else test
        with split.line(where):
            if row["annotation"] == "1":
                times = [number(row[edge], edge, float) for edge in ("start", "end")]
                label = number(row["class_id"], "class_id")
                name = f"{row['id']}_{row['video_id']}"
                split.add(name, _below(("rareact", "videos"), row["video_id"]), [label], *times)
    return Listing(classes, train, test)


def moments_in_time(root: Path, num_classes: int) -> Listing:
    """Moments in Time: moments_categories.txt, {training,validation}Set.csv, {training,...}/."""
    class_file = annotation_file(root, "moments_categories.txt")
    rows = csv_rows(class_file, ("name", "number"), header=False)
    numbers = {row["name"]: number(row.get("number", ""), where) for where, row in rows}
    classes = check_classes(sorted(numbers, key=numbers.get), num_classes, str(class_file))
    splits = _splits(root, num_classes)
    for split, name in zip(splits, ("training", "validation"), strict=True):
        file = annotation_file(root, f"{name}Set.csv")
        columns = ("filename", "label", "agree", "disagree")
        for where, row in csv_rows(file, columns, header=False):
            with split.line(where):
                video = _stem(row["filename"])
                split.add(video, [f"{name}/{video}"], [class_number(numbers, row["label"])])
    return Listing(classes, *splits)


def perception_test(root: Path, num_classes: int) -> Listing:
    """Perception Test: the action segments of its action localisation task, as clips to classify.

    Times come from frame numbers and the frame rate, since the unit of `timestamps` is stated as
    milliseconds and is something else; the last frame of a segment is taken as part of it.
    """
    splits = _splits(root, num_classes)
    names: dict[int, str] = {}
    for split, name in zip(splits, ("train", "valid"), strict=True):
        stem = f"action_localisation_{name}.json"
        file = annotation_file(root, stem, f"challenge_{stem}", f"all_{name}.json")
        for video, entry in read_json(file, dict).items():
            for place, segment in enumerate(_field(entry, "action_localisation") or ()):
                with split.line(f"{file.name}, {video}, action {place}"):
                    rate = number(entry["metadata"]["frame_rate"], "frame_rate", float)
                    first, last = segment["frame_ids"]
                    folders = ("videos", f"{name}_videos", f"{name}_videos/videos", name)
                    label = number(segment["label_id"], "label_id")
                    names.setdefault(label, segment["label"])
                    # Half a frame off, so that rounding decides nothing.
                    times = max(0.0, (first - 0.5) / rate), (last + 0.5) / rate
                    split.add(f"{video}_{place}", _below(folders, video), [label], *times)
    complete = set(names) == set(range(num_classes))
    return Listing([names[i] for i in range(num_classes)] if complete else None, *splits)


def _splits(root: Path, num_classes: int) -> tuple[Split, Split]:
    files = Files(root)
    return Split(files, num_classes), Split(files, num_classes)


def _entries(file: Path) -> Iterator[tuple[str, dict]]:
    """Entries of a JSON list, as (name of the entry, it)."""
    for place, entry in enumerate(read_json(file, list)):
        yield f"{file.name}, entry {place}", entry


def _field(entry: object, name: str) -> Any:
    """A field of a JSON object, or None."""
    return entry.get(name) if isinstance(entry, dict) else None


def _below(folders: Iterable[str], name: str) -> list[str]:
    """The name in each of these folders, and in the root."""
    return [*(f"{folder}/{name}" for folder in folders), name]


def _stem(path: str) -> str:
    """A path without the extension of a video."""
    stem, extension = posixpath.splitext(path)
    return stem if EXTENSIONS.get(extension.lower()) == "video" else path


def _clock(text: str, what: str) -> float:
    """Seconds of HH:MM:SS.ss."""
    parts = text.split(":")
    if len(parts) != 3:
        raise ValueError(f"{what} = {text!r} is no time HH:MM:SS.ss")
    hours, minutes, seconds = (number(part, what, float) for part in parts)
    return 3600 * hours + 60 * minutes + seconds
