"""`codecvit pack-pairs`: what comes out, what is counted, that it can be resumed and divided."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
from made import picture_bytes, synthetic, web, write_tar

from codecvit.__main__ import main
from codecvit.data.augment import AugmentConfig
from codecvit.data.pairs import PairTextConfig, make_pair_loader, open_pairs
from codecvit.data.records import RecordSet

SMALL = ["--size", "32", "--patch", "8", "--workers", "0"]


def pack(spec, out, *options):
    return main(["pack-pairs", str(spec), "--out", str(out), *SMALL, *map(str, options)])


def content(folder):
    """All bytes of a finished set; parts and what says when something was written left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def bad_table(write_table):
    """12 pairs, 7 of them unusable in all ways."""
    rows = {
        1: {"path": "images/none.png"},
        4: {"caption": "", "re_caption": ""},
        5: {"caption": "x" * 60_000},
        9: {"caption": "\ud800"},
    }
    table = write_table(12, rows=rows)
    images = table.parent / "images"
    (images / "002.png").write_bytes(picture_bytes(2)[:70])
    (images / "003.png").write_bytes(picture_bytes(3, 1, 1))
    (images / "007.png").write_bytes(b"")
    return table


USABLE = [0, 6, 8, 10, 11]


def test_a_set_holds_pictures_and_texts(write_table, tmp_path):
    table = write_table(7)
    assert pack(f"table:{table}", tmp_path / "out") == 0
    records = RecordSet(tmp_path / "out" / "image")
    assert records.keys == [f"pair-{n:03d}" for n in range(7)]
    assert records.manifest["texts"] == {"text_0": 7, "text_1": 7}
    for n, record in enumerate(records):
        assert record.texts == {"text_0": web(n), "text_1": synthetic(n)}
        assert record.picture == picture_bytes(n)
        assert (record.sequence.patches == (n * 5, 100, 200)).all() and len(record.sequence) == 16


def test_records_are_in_key_order_whatever_the_order_of_the_source(tmp_path):
    names = ["c", "a", "b"]
    files = [(f"{n}.{e}", d) for n in names for e, d in (("png", picture_bytes(1)), ("txt", b"x"))]
    write_tar(tmp_path / "t.tar", files)
    assert pack(f"webdataset:{tmp_path}/t.tar", tmp_path / "out", "--pairs-per-shard", 2) == 0
    records = RecordSet(tmp_path / "out" / "image")
    assert records.keys == ["t/a", "t/b", "t/c"]


def test_what_cannot_be_used_is_counted_with_key_and_reason(write_table, tmp_path, capsys):
    assert pack(f"table:{bad_table(write_table)}", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "pairs: 5 ok, 0 skipped, 7 failed" in said
    assert "failed: dead 2, undecodable 2, no text 1, bad text 2" in said
    folder = tmp_path / "out" / "image"
    assert [int(key[-3:]) for key in RecordSet(folder).keys] == USABLE
    lines = (folder / "failures.jsonl").read_text().splitlines()
    failures = {row["key"]: (row["kind"], row["reason"]) for row in map(json.loads, lines)}
    kinds = {int(key[-3:]): kind for key, (kind, _) in failures.items()}
    assert kinds == {
        1: "dead",
        2: "undecodable",
        3: "undecodable",
        4: "no text",
        5: "bad text",
        7: "dead",
        9: "bad text",
    }
    assert "60000 characters" in failures["pair-005"][1]
    # Said again, with the same counts, when there is nothing left to do.
    assert pack(f"table:{tmp_path}/table.jsonl", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "nothing to do" in said and "pairs: 0 ok, 5 skipped, 7 failed" in said
    assert "failed: dead 2, undecodable 2, no text 1, bad text 2" in said


def test_too_many_failures_are_an_error(write_table, tmp_path):
    table = bad_table(write_table)
    assert pack(f"table:{table}", tmp_path / "a", "--max-failures", 7) == 0
    assert pack(f"table:{table}", tmp_path / "b", "--max-failures", 6) == 1


def test_array_jobs_and_workers_give_the_same_bytes(write_table, tmp_path):
    table = bad_table(write_table)
    assert pack(f"table:{table}", tmp_path / "one", "--pairs-per-shard", 5) == 0
    whole = content(tmp_path / "one")
    for job in (2, 0, 1):
        shard = ["--pairs-per-shard", 5, "--shard", f"{job}/3"]
        assert pack(f"table:{table}", tmp_path / "three", *shard) == 0
        assert (tmp_path / "three/image/manifest.json").exists() == (job == 1)
    assert content(tmp_path / "three") == whole
    options = ["--pairs-per-shard", 5, "--workers", 2]
    assert pack(f"table:{table}", tmp_path / "two", *options) == 0
    assert content(tmp_path / "two") == whole


def test_a_killed_run_goes_on(write_table, tmp_path, capsys):
    table = bad_table(write_table)
    assert pack(f"table:{table}", tmp_path / "out", "--pairs-per-shard", 4) == 0
    whole, folder = content(tmp_path / "out"), tmp_path / "out" / "image"
    (folder / "manifest.json").unlink()
    shard = sorted(folder.glob("*.array_record"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    capsys.readouterr()
    assert pack(f"table:{table}", tmp_path / "out", "--pairs-per-shard", 4) == 0
    assert content(tmp_path / "out") == whole
    assert "pairs: 1 ok, 4 skipped, 7 failed" in capsys.readouterr().out


def test_other_pairs_or_texts_are_not_taken_for_the_same(write_table, tmp_path, capsys):
    table = write_table(3)
    assert pack(f"table:{table}", tmp_path / "out") == 0
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"key": "pair-000", "caption": "other"}\n')
    assert pack(f"table:{table}", tmp_path / "out", "--captions", captions) == 2
    assert "--overwrite" in capsys.readouterr().err
    options = ["--captions", captions, "--overwrite"]
    assert pack(f"table:{table}", tmp_path / "out", *options) == 0
    records = RecordSet(tmp_path / "out" / "image")
    assert [r.texts["text_0"] for r in records] == ["other", web(1), web(2)]


def test_captions_are_added_to_a_set_of_pictures(write_table, tmp_path):
    """Packed by `codecvit pack` without texts; everything else of a record stays as it is."""
    images = write_table(3).parent / "images"
    assert main(["pack", str(images), "--out", str(tmp_path / "plain"), *SMALL]) == 0
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"key": "001.png", "caption": "a"}\n{"key": "002.png", "caption": "b"}\n')
    spec = f"records:{tmp_path}/plain/image"
    assert pack(spec, tmp_path / "out", "--captions", captions) == 0
    before, after = RecordSet(tmp_path / "plain" / "image"), RecordSet(tmp_path / "out" / "image")
    assert after.keys == ["001.png", "002.png"]
    for old, new in zip(list(before)[1:], after, strict=True):
        assert new.picture == old.picture and new.labels == old.labels
        np.testing.assert_array_equal(new.descriptor, old.descriptor)
    assert [r.texts for r in after] == [{"text_0": "a"}, {"text_0": "b"}]
    assert all(r.texts == {} for r in before)


def test_nothing_to_pack(write_table, tmp_path, capsys):
    write_tar(tmp_path / "empty.tar", [])
    assert pack(f"webdataset:{tmp_path}/empty.tar", tmp_path / "a") == 2
    assert "holds no pairs" in capsys.readouterr().err
    table = write_table(2, rows={n: {"path": "none.png"} for n in range(2)})
    for _ in range(2):
        assert pack(f"table:{table}", tmp_path / "b") == 1
        said = capsys.readouterr()
        assert "nothing could be packed" in said.err and "0 ok, 0 skipped, 2 failed" in said.out


def write_video(path, frames=8):
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        rng = np.random.default_rng(0)
        for frame in rng.integers(0, 255, (frames, 64, 64, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_videos_with_texts_become_codec_records(tmp_path, tokenizer, capsys):
    write_video(tmp_path / "a.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    rows = [
        {"video": name, "key": name, "caption": f"picture {n}"}
        for n, name in enumerate(["a.mp4", "bad.mp4", "none.mp4"])
    ]
    table = tmp_path / "videos.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--video", "--budget", 24, "--num-frames", 4]
    assert pack(f"table:{table}", tmp_path / "out", *options) == 0
    assert "failed: dead 1, undecodable 1" in capsys.readouterr().out
    records = RecordSet(tmp_path / "out" / "codec")
    assert records.keys == ["a.mp4"] and records[0].mode == "codec"
    assert records[0].texts == {"text_0": "picture 0"} and len(records[0].sequence) == 24
    # Patches and pictures go through one loader; patches are masked, too.
    source = open_pairs(f"records:{tmp_path}/out/codec")
    text = PairTextConfig(token_len=8, output_token_len=8)
    with make_pair_loader(
        source, tokenizer, text, batch_size=2, budget=12, mask_ratio=0.5
    ) as loader:
        batch = next(loader)
    assert batch["patches"].shape == (2, 12, 192) and (batch["length"] == 12).all()
    assert tokenizer.decode(batch["text_0"][0][1:]) == "picture 0"
    with pytest.raises(ValueError, match="neither cropped nor"):
        make_pair_loader(
            source, tokenizer, text, batch_size=2, budget=24, augment=AugmentConfig(grey=0.5)
        )


@pytest.mark.parametrize("kind", ["webdataset", "folder"])
def test_videos_in_tars_and_folders(tmp_path, kind):
    """A pair without a video is dead; its options are those of the mode."""
    write_video(tmp_path / "v.mp4")
    files = [
        ("a.mp4", (tmp_path / "v.mp4").read_bytes()),
        ("a.txt", b"a video"),
        ("b.png", picture_bytes(1)),
        ("b.txt", b"a picture"),
    ]
    (tmp_path / "data").mkdir()
    for name, data in files:
        (tmp_path / "data" / name).write_bytes(data)
    write_tar(tmp_path / "t.tar", files)
    spec = {"webdataset": f"webdataset:{tmp_path}/t.tar", "folder": f"folder:{tmp_path}/data"}[kind]
    options = ["--video", "--mode", "frames", "--budget", 32, "--num-frames", 2]
    assert pack(spec, tmp_path / "out", *options) == 0
    records = RecordSet(tmp_path / "out" / "frames")
    assert [key.rpartition("/")[2] for key in records.keys] == ["a"]
    assert records[0].texts == {"text_0": "a video"} and len(records[0].sequence) == 32
    (failure,) = (tmp_path / "out/frames/failures.jsonl").read_text().splitlines()
    assert json.loads(failure)["reason"] == "no video among png, txt"


def test_pictures_and_videos_in_one_loader(write_table, tmp_path, tokenizer):
    write_video(tmp_path / "a.mp4")
    table = tmp_path / "videos.jsonl"
    table.write_text('{"video": "a.mp4", "caption": "a"}\n')
    assert pack(f"table:{table}", tmp_path / "out", "--video", "--budget", 20) == 0
    sources = [
        open_pairs(f"records:{tmp_path}/out/codec"),
        open_pairs(f"table:{write_table(4)}"),
    ]
    text = PairTextConfig(token_len=8, output_token_len=8)
    options = {"batch_size": 4, "budget": 20, "image_size": 32, "weights": [1, 1]}
    with make_pair_loader(sources, tokenizer, text, **options) as loader:
        batches = [next(loader) for _ in range(4)]
        assert loader.taken() == [8, 8] and not loader.unreadable
    for batch in batches:
        video = batch["index"] == 0
        assert video.sum() == 2
        assert (batch["length"] == np.where(video, 20, 16)).all()
        assert (batch["positions"][video][:, :, 0].max(axis=1) > 0).all()
        assert not batch["positions"][~video][:, :, 0].any()


def test_a_packed_set_gives_the_batches_of_its_source(write_table, tmp_path, tokenizer):
    table = bad_table(write_table)
    assert pack(f"table:{table}", tmp_path / "out") == 0
    text = PairTextConfig(token_len=8, output_token_len=8)
    options = {"batch_size": 5, "budget": 16, "patch": 8, "image_size": 32, "shuffle": False}
    source = open_pairs(f"records:{tmp_path}/out/image")
    with make_pair_loader(source, tokenizer, text, **options) as loader:
        batch = next(loader)
        assert not loader.unreadable
    order = np.argsort(batch["index"])
    for row, n in zip(order, USABLE, strict=True):
        assert tokenizer.decode(batch["text_0"][row][1:]) == web(n)
        assert (batch["patches"][row].reshape(16, -1, 3) == (n * 5, 100, 200)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--video"], "holds records already"),
        (["--columns", "x=y"], "'x' is none of"),
        (["--size", "30"], "30"),
    ],
)
def test_options_that_cannot_work(write_table, tmp_path, options, message, capsys):
    assert pack(f"table:{write_table(2)}", tmp_path / "out") == 0
    capsys.readouterr()
    assert pack(f"records:{tmp_path}/out/image", tmp_path / "again", *options) == 2
    assert message in capsys.readouterr().err
