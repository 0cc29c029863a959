"""Inputs of `codecvit pack`: what is listed, under which keys, with which labels."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codecvit.data.sources import list_items, local_file


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def _tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_a_folder_is_searched_for_media(tmp_path):
    _touch(tmp_path, "b.MP4", "a/x y.mkv", "a/deep/er/p.jpg", "notes.txt", "t.csv", ".hidden.mp4")
    items = list_items([tmp_path])
    assert [(item.key, item.kind) for item in items] == [
        ("a/deep/er/p.jpg", "image"),
        ("a/x_y.mkv", "video"),
        ("b.MP4", "video"),
    ]
    assert items[1].source == "a/x y.mkv" and items[1].size == len("a/x y.mkv")
    assert all(item.labels == {} for item in items)


def test_class_folders_give_labels(tmp_path):
    _touch(tmp_path, "cat/a.mp4", "cat/more/b.mp4", "dog/a.mp4", "stray.mp4")
    labels = {item.key: item.labels for item in list_items([tmp_path], class_folders=True)}
    assert labels == {
        "cat/a.mp4": {"label": "cat"},
        "cat/more/b.mp4": {"label": "cat"},
        "dog/a.mp4": {"label": "dog"},
        "stray.mp4": {},
    }
    with pytest.raises(ValueError, match="no class folders"):
        list_items([tmp_path / "dog"], class_folders=True)


def test_keys_are_unique_and_do_not_depend_on_the_order_of_inputs(tmp_path):
    _touch(tmp_path, "one/a b.mp4", "one/a_b.mp4", "two/a_b.mp4")
    one, two = tmp_path / "one", tmp_path / "two"
    keys = [(item.key, item.source) for item in list_items([one, two])]
    assert keys == [
        ("one/a_b.mp4", "a b.mp4"),
        ("one/a_b.mp4~2", "a_b.mp4"),
        ("two/a_b.mp4", "a_b.mp4"),
    ]
    assert list_items([two, one]) == list_items([one, two])


def test_csv_gives_labels_and_cuts(tmp_path):
    _touch(tmp_path, "clips/a.mp4")
    table = tmp_path / "t.csv"
    table.write_text(
        "path,label,start,end,digit\n"
        "clips/a.mp4,run,,,3\n"
        "clips/a.mp4,jump,1.5,2,\n"
        f"{tmp_path}/clips/a.mp4,run,,4,7\n"
        "missing.mp4,run,,,1\n"
    )
    items = {item.key: item for item in list_items([table])}
    assert items["clips/a.mp4"].labels == {"label": "run", "digit": "3"}
    cut = items["clips/a.mp4@1.5-2"]
    assert (cut.start, cut.end, cut.labels) == (1.5, 2.0, {"label": "jump"})
    assert Path(cut.path) == tmp_path / "clips" / "a.mp4"
    absolute = items[f"{str(tmp_path).strip('/')}/clips/a.mp4@-4"]
    assert (absolute.start, absolute.end) == (None, 4.0) and absolute.size > 0
    assert items["missing.mp4"].size == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4,run\n", "must name the columns, among them `path`"),
        ("path,label\na.mp4\n", "line 2: expected 2 fields"),
        ("path,label\n,run\n", "line 2: expected 2 fields and a path"),
        ("path,start\na.mp4,soon\n", "line 2, start: 'soon' is no number"),
        ("path,start\na.png,1\n", "line 2: an image has no start or end"),
        ("path,my label\na.mp4,x\n", "label name 'my label'"),
        ('path,label\n"a.mp4,run\n', "unexpected end of data"),
        ("path\n", "holds no file to pack"),
    ],
)
def test_a_malformed_csv_is_named(tmp_path, text, message):
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        list_items([table])
    assert "t.csv" in str(caught.value)


def test_tar_members_are_read_in_place(tmp_path):
    members = {
        "s/0001.mp4": b"first",
        "s/0001.cls": b"cat\n",
        "s/0001.txt": b"a caption",
        "s/0002.json": b'{"label": 7, "fps": 30}',
        "s/0002.mp4": b"second",
        "s/0003.mp4": b"third",
    }
    _tar(tmp_path / "in" / "shard-0.tar", members)
    items = list_items([tmp_path / "in"])
    assert [(item.key, item.labels) for item in items] == [
        ("shard-0/s/0001.mp4", {"label": "cat"}),
        ("shard-0/s/0002.mp4", {"label": "7"}),
        ("shard-0/s/0003.mp4", {}),
    ]
    for item, content in zip(items, (b"first", b"second", b"third"), strict=True):
        with local_file(item) as path:
            assert path.read_bytes() == content and path.suffix == ".mp4"
        assert not path.exists()
    assert [i.key for i in list_items([tmp_path / "in" / "shard-0.tar"])] == [i.key for i in items]


def test_a_damaged_tar_is_named(tmp_path):
    tar = _tar(tmp_path / "bad.tar", {"a.mp4": b"x"})
    tar.write_bytes(b"\x01" * 2000)
    with pytest.raises(ValueError, match=r"bad.tar is no readable WebDataset tar"):
        list_items([tar])


def test_a_file_named_directly_may_have_any_name(tmp_path):
    _touch(tmp_path, "clip.unknown")
    (item,) = list_items([tmp_path / "clip.unknown"])
    assert (item.kind, item.key) == ("video", "clip.unknown")
    with local_file(item) as path:
        assert path == tmp_path / "clip.unknown"


def test_missing_and_empty_inputs_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        list_items([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="holds no file to pack"):
        list_items([tmp_path])


@pytest.fixture
def frame_folders(tmp_path):
    """videos/run/a and videos/jump/b hold frames at 5 a second; videos/still.png is an image."""
    root = tmp_path / "videos"
    for name in ("run/a", "jump/b"):
        (root / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.full((32, 32, 3), 40 * i, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:03d}.png")
        (root / name / "fps.txt").write_text("5")
    Image.fromarray(pixels).save(root / "still.png")
    return root


def test_folders_of_numbered_images_are_videos(frame_folders):
    items = list_items([frame_folders], class_folders=True)
    assert [(i.key, i.kind, i.rate) for i in items] == [
        ("jump/b", "video", 5),
        ("run/a", "video", 5),
        ("still.png", "image", None),
    ]
    assert items[0].labels == {"label": "jump"}
    assert items[0].size == sum(p.stat().st_size for p in (frame_folders / "jump/b").glob("*.png"))
    (alone,) = list_items([frame_folders / "run" / "a"])
    assert (alone.key, alone.kind) == ("a", "video")
    table = frame_folders / "list.csv"
    table.write_text("path,start\nrun/a,0.2\n")
    (row,) = list_items([table])
    assert (row.key, row.kind, row.rate, row.start) == ("run/a@0.2-", "video", 5, 0.2)


def test_without_a_rate_they_are_images(frame_folders):
    (frame_folders / "run" / "a" / "fps.txt").unlink()
    keys = [item.key for item in list_items([frame_folders])]
    assert keys == ["jump/b", *(f"run/a/{i:03d}.png" for i in range(3)), "still.png"]
