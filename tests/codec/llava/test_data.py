"""`codecvit llava data`: rows, packs, resume, workers, shards, reuse."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from codecvit import pack_video
from codecvit.codec.llava.cli import main
from codecvit.codec.llava.keys import sha1
from codecvit.codec.llava.mosaic import Mosaics
from codecvit.codec.llava.pack_index import PackIndex

from .helpers import SMALL, cells_of, failures, pixels, read_rows, tree, video_row

IMAGE_ROW = {
    "id": 7,
    "image": "pics/a.jpg",
    "conversations": [{"from": "human", "value": "<image>\nWhat? \u2028é"}],
    "extra": {"source": None},
}
TEXT_ROW = {"id": "t", "conversations": [{"from": "human", "value": "Hi"}]}


def packs(folder):
    return sorted(folder.glob("images/shard*/sample_*"))


def test_published_shapes(raw, make, clips):
    """64 frames, 8 images of 576 pixels, patch 16: int32 [10368, 3], by all three ways alike."""
    path = raw([video_row("long.mp4")])
    status, out = make(path, "--lossless", small=False)
    assert status == 0
    (row,) = read_rows(out)
    (pack,) = packs(out)
    names = [f"long_{i:03d}.png" for i in range(8)]
    assert row["image"] == [f"{pack.relative_to(out).as_posix()}/{name}" for name in names]
    assert row["conversations"][0]["value"] == "\n".join(["<image>"] * 8) + "\nWhat happens?"
    assert row["conversations"][1] == {"from": "gpt", "value": "This."}
    assert "video" not in row and row["id"] == "s1"
    positions = np.load(out / row["positions_thw"])
    assert positions.dtype == np.int32 and positions.shape == (10368, 3)
    np.testing.assert_array_equal(positions[:1296, 0], 0)
    assert positions[1296:, 0].min() > 0 and positions[:, 0].max() == 63
    pictures = [pixels(out / name) for name in row["image"]]
    assert {picture.shape for picture in pictures} == {(576, 576, 3)}

    packed = pack_video(clips / "long.mp4", budget=10368, size=576, patch=16, geometry="square")
    np.testing.assert_array_equal(positions, packed.positions)
    cells = np.concatenate([cells_of(picture, 16) for picture in pictures])
    np.testing.assert_array_equal(cells, packed.patches)

    keys = raw([{"video": "long.mp4", "key": "k"}], "keys.jsonl")
    arguments = ["--jsonl", keys, "--out", out, "--root", clips, "--lossless", "--workers", 0]
    assert main(["assets", *map(str, arguments)]) == 0
    for i, name in enumerate(row["image"]):
        mosaic = out / "assets" / "k" / f"mosaic_{i:03d}.png"
        assert mosaic.read_bytes() == (out / name).read_bytes()
    assert np.array_equal(np.load(out / "assets" / "k" / "positions_thw.npy"), positions)


def test_rows_without_a_video_pass_through_unchanged(raw, make):
    rows = [IMAGE_ROW, TEXT_ROW, video_row("one.mp4"), {"id": None}]
    status, out = make(raw(rows))
    done = read_rows(out)
    assert status == 0
    assert [done[i] for i in (0, 1, 3)] == [rows[i] for i in (0, 1, 3)]
    assert len(done[2]["image"]) == 1


def test_json_and_jsonl_with_other_fields_give_the_same(raw, make):
    row = {**video_row("one.mp4"), "source": "x"}
    _, a = make(raw([row]), out="a")
    _, b = make(raw([row], "raw.jsonl"), out="b")
    assert tree(a) == tree(b)
    assert read_rows(a)[0]["source"] == "x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<video>\nWhat?", "<image>\n<image>\n<image>\nWhat?"),
        ("What? <video>", "What? <image>\n<image>\n<image>"),
        ("<image>\nWhat?", "<image>\n<image>\n<image>\nWhat?"),
        ("<image><image><image> What?", "<image><image><image> What?"),
        ("What?", "<image>\n<image>\n<image>\nWhat?"),
    ],
)
def test_the_place_of_the_video(raw, make, text, expected):
    _, out = make(raw([video_row("three.mp4", text=text)]))
    assert read_rows(out)[0]["conversations"][0]["value"] == expected


def test_bad_rows_are_listed_and_left_out(raw, make, clips):
    (clips / "broken.mp4").write_bytes(b"no video")
    rows = [
        video_row("gone.mp4", "gone"),
        video_row("broken.mp4", "broken"),
        video_row("one.mp4", "good"),
        video_row("one.mp4", "twice", "<video> <video>"),
        video_row("one.mp4", "two", "<image> <image>"),
        {"id": "mute", "video": "one.mp4"},
        {**video_row("one.mp4", "list"), "video": ["one.mp4", "three.mp4"]},
        {**video_row("one.mp4", "both"), "image": "a.jpg"},
        {**video_row("one.mp4", "robot"), "conversations": [{"from": "gpt", "value": "x"}]},
    ]
    path = raw(rows, "raw.jsonl")
    path.write_text(path.read_text() + "\n{not json\n[1]\n")
    status, out = make(path)
    assert status == 0
    assert [row["id"] for row in read_rows(out)] == ["good"]
    found = failures(out)
    assert [f["id"] for f in found] == [
        *("gone", "broken", "twice", "two", "mute", "list", "both", "robot", None, None)
    ]
    assert [f["kind"] for f in found] == ["MediaError"] * 2 + ["RowError"] * 8
    assert found[0]["video"] == "gone.mp4" and "does not exist" in found[0]["reason"]
    assert make(path, "--max-failures", 9)[0] == 1
    assert make(path, "--max-failures", 10)[0] == 0
    assert make(raw([video_row("gone.mp4")]), out="nothing")[0] == 1
    (clips / "broken.mp4").unlink()


def test_rows_of_one_video_share_a_pack_however_it_is_written(raw, make, clips):
    rows = [
        video_row("a/clip.mp4", "z"),
        video_row("./a/clip.mp4", "b"),
        video_row(str(clips / "a" / "clip.mp4"), "c"),
        video_row(["a/clip.mp4"], "d"),
    ]
    _, out = make(raw(rows))
    assert len(packs(out)) == 1
    done = read_rows(out)
    assert len(done) == 4 and all(row["image"] == done[0]["image"] for row in done)


def test_one_stem_in_two_folders_and_hostile_ids_stay_apart(raw, make):
    ids = ["../../x", "", "a/b", "a:b", "电影", "x" * 300]
    rows = [video_row(v, i) for i in ids for v in ("a/clip.mp4", "b/clip.mp4")]
    status, out = make(raw(rows))
    assert status == 0
    done = read_rows(out)
    assert [row["id"] for row in done] == [row["id"] for row in rows]
    first, second = (pixels(out / done[i]["image"][0]) for i in (0, 1))
    assert first.shape == second.shape and (first != second).any()
    assert len(packs(out)) == 2
    # Nothing was written outside of the two places, and every file is where its row says.
    assert {path.name for path in out.iterdir()} == {
        *("images", "train.jsonl", "train.jsonl.failures.jsonl")
    }
    assert main(["check", str(out / "train.jsonl"), "--workers", "0"]) == 0


def test_two_hostile_ids_that_clean_alike(raw, make):
    rows = [video_row("a/clip.mp4", "a/b"), video_row("b/clip.mp4", "a:b")]
    _, out = make(raw(rows))
    names = [path.name.split("__")[0] for path in packs(out)]
    assert len(set(names)) == 2 and all(name.startswith("sample_a_b-") for name in names)


def test_paths_relative_or_absolute(raw, make, tmp_path):
    path = raw([video_row("one.mp4")])
    _, a = make(path, out="a")
    _, b = make(path, "--paths", "absolute", out="b")
    (relative,), (absolute,) = read_rows(a), read_rows(b)
    assert absolute["image"] == [str(b / name) for name in relative["image"]]
    assert absolute["positions_thw"] == str(b / relative["positions_thw"])
    # Relative ones survive a move.
    a.rename(tmp_path / "moved")
    assert main(["check", str(tmp_path / "moved" / "train.jsonl"), "--workers", "0"]) == 0


def counts(capsys):
    return capsys.readouterr().out.splitlines()[-1]


def test_resume_skips_what_is_the_same_and_only_that(raw, make, clips, capsys):
    video = clips / "changing.mp4"
    shutil.copy(clips / "a" / "clip.mp4", video)
    path = raw([video_row("changing.mp4"), video_row("one.mp4")])
    _, out = make(path)
    before = tree(out)
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("images/**/*") if p.is_file()}
    capsys.readouterr()

    assert make(path)[0] == 0
    assert counts(capsys) == "videos: 0 ok, 2 skipped, 0 failed"
    assert tree(out) == before
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())

    # A new row with a smaller id takes the pack that is there.
    more = raw([video_row("changing.mp4", "a0"), video_row("one.mp4")], "more.json")
    make(more)
    assert counts(capsys) == "videos: 0 ok, 2 skipped, 0 failed"

    shutil.copy(clips / "b" / "clip.mp4", video)
    make(path)
    assert counts(capsys) == "videos: 1 ok, 1 skipped, 0 failed"
    assert tree(out) != before

    # Fewer mosaics: no file of the old pack stays.
    make(path, "--num-images", "2")
    assert counts(capsys) == "videos: 2 ok, 0 skipped, 0 failed"
    names = [p.name for p in packs(out)[0].iterdir() if p.name.startswith("changing")]
    names += [p.name for p in packs(out)[1].iterdir() if p.name.startswith("changing")]
    assert sorted(names) == ["changing_000.jpg", "changing_001.jpg"]

    # Damage is found and mended.
    image = next(out.glob("images/*/*/changing_001.jpg"))
    image.write_bytes(image.read_bytes()[:-1])
    make(path, "--num-images", "2")
    assert counts(capsys) == "videos: 1 ok, 1 skipped, 0 failed"
    next(out.glob("images/*/*changing*/meta.json")).write_text("{")
    make(path, "--num-images", "2")
    assert counts(capsys) == "videos: 1 ok, 1 skipped, 0 failed"
    video.unlink()


def test_a_pack_that_was_interrupted_is_made_again(raw, make, monkeypatch):
    """Even over a pack of the same options, whose files would all have the right sizes."""
    path = raw([video_row("a/clip.mp4")])
    _, out = make(path)
    whole = tree(out)
    encode = Mosaics.files

    def fail(self, png):
        yield next(encode(self, png))
        raise KeyboardInterrupt

    monkeypatch.setattr(Mosaics, "files", fail)
    with pytest.raises(KeyboardInterrupt):
        make(path, "--num-images", 2)
    monkeypatch.undo()
    (pack,) = packs(out)
    assert not (pack / "meta.json").exists()
    make(path)
    assert tree(out) == whole


def test_a_hash_alone_finds_no_pack(tmp_path):
    (tmp_path / "shard00" / "sample_1__clip__0123456789abcdef").mkdir(parents=True)
    index = PackIndex(str(tmp_path))
    assert index.find("clip__0123456789abcdef").endswith("__clip__0123456789abcdef")
    assert index.find("lip__0123456789abcdef") is None
    assert index.find("other__0123456789abcdef") is None
    assert index.find("clip__fedcba9876543210") is None


ROWS = [
    video_row("long.mp4", "1"),
    TEXT_ROW,
    video_row("a/clip.mp4", "2"),
    video_row("gone.mp4", "3"),
    video_row("b/clip.mp4", "4"),
    video_row("a/clip.mp4", "5", "<video> <video>"),
    video_row("three.mp4", "6"),
    video_row("one.mp4", "7"),
    video_row("long.mp4", "8"),
]


def test_any_number_of_workers_gives_the_same_bytes(raw, make):
    path = raw(ROWS)
    trees = [tree(make(path, out=f"w{n}", workers=n)[1]) for n in (0, 1, 2)]
    assert trees[0] == trees[1] == trees[2]
    assert len(trees[0]) > 20


def test_array_jobs_give_the_bytes_of_one_run(raw, make, capsys):
    path = raw(ROWS)
    one = tree(make(path, out="one")[1])
    for number in (2, 0, 1):
        status, out = make(path, "--shard", f"{number}/3", out="three")
        assert status == 0
        assert (out / "train.jsonl").exists() == (number == 1)
    three = {name: data for name, data in tree(out).items() if ".parts/" not in name}
    assert three == one
    # Parts of other options do not count.
    capsys.readouterr()
    make(path, "--shard", "0/3", "--lossless", out="three")
    assert "not yet" in capsys.readouterr().out


def test_the_order_of_rows_moves_no_pack(raw, make):
    _, a = make(raw(ROWS), out="a")
    _, b = make(raw(ROWS[::-1], "reversed.json"), out="b")
    assert tree(a / "images") == tree(b / "images")
    assert read_rows(a) == read_rows(b)[::-1]


def test_reuse_writes_new_rows_over_packs(raw, make):
    _, out = make(raw([video_row("a/clip.mp4", "1"), video_row("one.mp4", "2")]))
    new = [video_row("a/clip.mp4", "new", "<video> And now?"), video_row("b/clip.mp4", "other")]
    images = tree(out / "images")
    status, again = make(raw(new, "new.json"), "--reuse", out / "images", out="again")
    assert status == 0
    # b/clip.mp4 has the stem of a pack, but another path.
    assert [row["id"] for row in read_rows(again)] == ["new"]
    assert [(f["id"], f["kind"]) for f in failures(again)] == [("other", "NoPack")]
    row = read_rows(again)[0]
    assert row["conversations"][0]["value"].endswith("<image> And now?")
    assert main(["check", str(again / "train.jsonl"), "--workers", "0"]) == 0
    assert tree(out / "images") == images and not (again / "images").exists()
    # Packs of other options are refused.
    _, third = make(raw(new, "new.json"), "--reuse", out / "images", "--lossless", out="third")
    assert [f["kind"] for f in failures(third)] == ["OtherOptions", "NoPack"]


def test_reuse_takes_published_packs_by_stem_and_hash(raw, make, tmp_path):
    """As the published tool lays them out: no meta.json, hash of the path as given."""
    _, out = make(raw([video_row("a/clip.mp4", "1")]))
    (pack,) = packs(out)
    root = tmp_path / "published"
    for folder in (
        f"sample_1__clip__{sha1('a/clip.mp4')}",
        f"video__clip__{sha1('elsewhere/clip.mp4')}",
    ):
        (root / folder).mkdir(parents=True)
        for file in pack.iterdir():
            if file.name != "meta.json":
                shutil.copy(file, root / folder / file.name)
    rows = [video_row(v, v) for v in ("a/clip.mp4", "b/clip.mp4", "elsewhere/clip.mp4")]
    _, again = make(raw(rows, "new.json"), "--reuse", root, out="again")
    done = read_rows(again)
    assert [row["id"] for row in done] == ["a/clip.mp4", "elsewhere/clip.mp4"]
    names = [os.path.basename(name) for name in done[0]["image"]]  # noqa: PTH119
    assert names == [f"clip_{i:03d}.jpg" for i in range(3)]
    assert main(["check", str(again / "train.jsonl"), "--workers", "0"]) == 0


def test_patch_14_is_stored_lossless_and_says_so(raw, make, capsys):
    status, out = make(
        raw([video_row("three.mp4")]), "--size", 56, "--patch", 14, small=False, out="p14"
    )
    assert status == 0
    assert "mosaics are PNG: cells of 14 pixels" in capsys.readouterr().out
    (row,) = read_rows(out)
    assert all(name.endswith(".png") for name in row["image"])


def test_a_folder_of_images_is_a_video(raw, make, tmp_path, capsys):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((48, 64, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    (folder / "fps.txt").write_text("5")
    path = raw([video_row(str(folder))])
    _, out = make(path)
    assert len(read_rows(out)[0]["image"]) == 3
    meta = json.loads(next(out.glob("images/*/*/meta.json")).read_text())
    assert meta["seconds"] == [0.0, 0.2, 0.4, 0.6] and meta["frame_ids"] == [0, 1, 2, 3]
    capsys.readouterr()
    Image.fromarray(np.full((48, 64, 3), 255, np.uint8)).save(folder / "2.png")
    make(path)
    assert counts(capsys) == "videos: 1 ok, 0 skipped, 0 failed"


def test_options_and_inputs_that_cannot_work(raw, make, tmp_path, capsys):
    path = raw([video_row("one.mp4")])
    for options, message in (
        (["--size", "65"], "size = 65 must be a multiple"),
        (["--set", "policy=groups"], "policy = 'groups'"),
        (["--write-selection", "x", "--geometry", "crop"], "needs --geometry square"),
        (["--write-selection", "x", "--from-selection", "y"], "--from-selection chooses no"),
        (["--shard", "3/3"], "shard = 3/3"),
    ):
        assert make(path, *options)[0] == 2
        assert message in capsys.readouterr().err
    missing = tmp_path / "missing.json"
    assert make(missing)[0] == 2
    broken = tmp_path / "broken.json"
    broken.write_text('[{"id": 1}, {"id": ')
    assert make(broken)[0] == 2
    assert "is no JSON array" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/train.jsonl"))


def test_files_behind_urls(make, raw, clips):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/set/one.mp4", (clips / "one.mp4").read_bytes())
    memory.pipe("/set/raw.json", json.dumps([video_row("one.mp4")]).encode())
    arguments = ["--input", "memory://set/raw.json", "--out-jsonl", "memory://out/train.jsonl"]
    arguments += ["--out-images", "memory://out/images", "--workers", "0", *SMALL]
    assert main(["data", *arguments]) == 0
    row = json.loads(memory.cat("/out/train.jsonl"))
    _, out = make(raw([video_row("one.mp4")]), out="local")
    assert row == read_rows(out)[0]
    assert memory.cat(f"/out/{row['image'][0]}") == (out / row["image"][0]).read_bytes()
    assert main(["check", "memory://out/train.jsonl", "--workers", "0"]) == 0
