"""The published stage-1 files: ours are as theirs, and both can be packed."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pytest

from codecvit.codec.clip import sample_clip
from codecvit.codec.llava.options import MosaicOptions
from codecvit.codec.llava.stages import read_selection

from .helpers import cells_of, failures, pixels, read_rows, tree, video_row

SIDE = 4  # patches of the small view


def write_published(folder, row, number, thw, frame_ids, name=None, **changes):
    """The three files as section 2 of the published format has them."""
    video, sample_id = row["video"], row["id"]
    stem = video.rpartition("/")[2].rpartition(".")[0]
    digest = [hashlib.sha1(s.encode()).hexdigest()[:8] for s in (name or video,)]
    digest.append(hashlib.sha1(f"{video}|{sample_id}|{number}".encode()).hexdigest()[:8])
    shape = f"T{len(frame_ids)}_square64_p16_K{len(thw)}"
    prefix = folder / f"sample_{sample_id}__{stem}__{digest[0]}__{digest[1]}_{shape}"
    np.save(f"{prefix}.visidx_thw.npy", np.array(thw, np.int32))
    np.save(f"{prefix}.frame_ids.npy", np.array(frame_ids, np.int32))
    meta = {
        "sample_id": sample_id,
        "sample_key": f"{video}|{sample_id}|{number}",
        "video": name or video,
        "T": len(frame_ids),
        "frame_ids": None,
        "preprocess": "square64",
        "square_size": 64,
        "patch": 16,
        "keep_frames_equiv": 3,
        "padding_policy": "zero",
        "keep_uniform_first": False,
        "keep_first_full_frame": True,
        "S_total": 16,
        "S_valid": 8,
        "K": len(thw),
        **changes,
    }
    (folder / f"{prefix.name}.meta.json").write_text(json.dumps(meta))
    return prefix


def recipe(frames, count, seed=0):
    """The first frame in reading order, then a random choice in random order: [count, 3]."""
    rest = np.random.default_rng(seed).permutation((frames - 1) * SIDE**2)[: count - SIDE**2]
    every = np.stack(np.unravel_index(np.arange(frames * SIDE**2), (frames, SIDE, SIDE)), axis=1)
    return np.concatenate([every[: SIDE**2], every[SIDE**2 :][rest]])


def test_published_files_are_packed_as_they_say(raw, make, clips, tmp_path):
    row = video_row("long.mp4", "x1")
    ids = np.linspace(0, 69, 64, dtype=int)
    thw = recipe(64, 48)
    write_published(tmp_path, row, 0, thw, ids)
    status, out = make(raw([row]), "--from-selection", tmp_path, "--lossless")
    assert status == 0
    (done,) = read_rows(out)
    positions = np.load(out / done["positions_thw"])
    np.testing.assert_array_equal(positions, thw[np.lexsort(thw.T[::-1])])
    cells = np.concatenate([cells_of(pixels(out / name), 16) for name in done["image"]])
    clip = sample_clip(clips / "long.mp4", 64, 64, 16, geometry="square")
    assert clip.frame_ids_M.tolist() == ids.tolist()
    np.testing.assert_array_equal(cells, clip.patches(*positions.T))


def test_published_files_of_a_short_clip_repeat_frames(raw, make, clips, tmp_path):
    """Their 64 frames of a clip of 3 are 0 0 ... 1 1 ... 2, and positions count all 64."""
    row = video_row("three.mp4", "x1")
    ids = np.linspace(0, 2, 64, dtype=int)
    thw = recipe(64, 48)
    write_published(tmp_path, row, 0, thw, ids)
    _, out = make(raw([row]), "--from-selection", tmp_path, "--lossless")
    (done,) = read_rows(out)
    positions = np.load(out / done["positions_thw"])
    np.testing.assert_array_equal(positions, thw[np.lexsort(thw.T[::-1])])
    cells = np.concatenate([cells_of(pixels(out / name), 16) for name in done["image"]])
    clip = sample_clip(clips / "three.mp4", 64, 64, 16, geometry="square")
    expected = clip.patches(ids[positions[:, 0]], positions[:, 1], positions[:, 2])
    np.testing.assert_array_equal(cells, expected)


def test_frames_that_no_even_sampling_gives(raw, make, clips, tmp_path):
    """Files made with an offset: frames 5 to 69."""
    row = video_row("long.mp4", "x1")
    ids = np.linspace(5, 69, 40, dtype=int)
    thw = recipe(40, 48)
    write_published(tmp_path, row, 0, thw, ids)
    _, out = make(raw([row]), "--from-selection", tmp_path, "--lossless")
    (done,) = read_rows(out)
    cells = np.concatenate([cells_of(pixels(out / name), 16) for name in done["image"]])
    whole = sample_clip(clips / "long.mp4", 64, 64, 16, geometry="square").frame_ids_M
    t, h, w = thw[np.lexsort(thw.T[::-1])].T
    # Frames that the even sampling has too: there the pixels are known.
    clip = sample_clip(clips / "long.mp4", 64, 64, 16, geometry="square")
    known = np.isin(ids[t], whole)
    assert known.sum() > 10
    place = np.searchsorted(whole, ids[t][known])
    np.testing.assert_array_equal(cells[known], clip.patches(place, h[known], w[known]))
    write_published(tmp_path, row, 0, thw, [*ids[:-1], 70])
    _, out = make(raw([row]), "--from-selection", tmp_path, out="beyond")
    assert "has no frame 70" in failures(out)[0]["reason"]


@pytest.mark.parametrize("name", ["long.mp4", "three.mp4", "one.mp4"])
@pytest.mark.parametrize("padding", ["keep", "exclude", "repeat"])
def test_a_round_trip_gives_the_same_mosaics(raw, make, tmp_path, name, padding):
    path = raw([video_row(name, "x1")])
    options = ["--padding", padding, "--num-frames", 64]
    _, a = make(path, *options, "--write-selection", tmp_path / "stage1", out="a")
    _, b = make(path, *options, "--from-selection", tmp_path / "stage1", out="b")
    mosaics = [
        {k: v for k, v in tree(out / "images").items() if not k.endswith("meta.json")}
        for out in (a, b)
    ]
    assert mosaics[0] == mosaics[1] and len(mosaics[0]) > 1


def test_ours_are_what_the_published_reader_expects(raw, make, clips, tmp_path):
    rows = [video_row("long.mp4", "x1"), video_row("long.mp4", "x2"), video_row("three.mp4", "x3")]
    folder = tmp_path / "stage1"
    make(raw(rows), "--write-selection", folder, "--num-frames", 64)
    for number, (row, clip_name) in enumerate(zip(rows, ("long", "long", "three"), strict=True)):
        key = f"{row['video']}|{row['id']}|{number}"
        sha = [hashlib.sha1(s.encode()).hexdigest()[:8] for s in (row["video"], key)]
        prefix = f"sample_{row['id']}__{clip_name}__{sha[0]}__{sha[1]}_T64_square64_p16_K48"
        meta = json.loads((folder / f"{prefix}.meta.json").read_text())
        thw = np.load(folder / f"{prefix}.visidx_thw.npy")
        ids = np.load(folder / f"{prefix}.frame_ids.npy")
        assert thw.dtype == ids.dtype == np.int32 and thw.shape == (48, 3) and ids.shape == (64,)
        # The first frame in reading order, then by falling score, nothing twice.
        h, w = np.divmod(np.arange(16), 4)
        np.testing.assert_array_equal(thw[:16], np.stack([0 * h, h, w], axis=1))
        assert len(np.unique(thw, axis=0)) == 48
        clip = sample_clip(clips / row["video"], 64, 64, 16, geometry="square")
        sample = np.searchsorted(clip.frame_ids_M, ids[thw[:, 0]])
        scores = clip.scores_MRC[sample, thw[:, 1], thw[:, 2]][16:]
        assert (np.diff(scores) <= 0).all()
        np.testing.assert_array_equal(clip.frame_ids_M[sample], ids[thw[:, 0]])
        assert meta["sample_key"] == key and meta["K"] == 48 and meta["S_total"] == 16
        # 64 x 48 in 64 x 64: 8 black rows above and below, half a patch each.
        assert (meta["H0"], meta["W0"]) == (48, 64)
        pad = meta["pad_info"]
        assert [pad[f"pad_{side}"] for side in ("top", "bottom", "left", "right")] == [8, 8, 0, 0]
        assert (pad["scale"], pad["Hn"], pad["Wn"], pad["out_size"]) == (1.0, 48, 64, 64)
        ranges = meta["valid_ranges"]
        assert (ranges["valid_h_start"], ranges["valid_h_end"], meta["S_valid"]) == (1, 3, 8)
        assert meta["padding_policy"] == "zero" and meta["keep_first_full_frame"] is True
    assert len(list(folder.iterdir())) == 9


def test_missing_selection_files_are_written_though_the_pack_is_there(raw, make, tmp_path, capsys):
    path = raw([video_row("three.mp4", "x1")])
    make(path)
    make(path, "--write-selection", tmp_path / "s")
    assert len(list((tmp_path / "s").iterdir())) == 3
    assert "videos: 1 ok" in capsys.readouterr().out
    make(path, "--write-selection", tmp_path / "s")
    assert "videos: 0 ok, 1 skipped" in capsys.readouterr().out


def test_files_are_found_by_row_and_never_by_stem_alone(raw, make, tmp_path):
    thw, ids = recipe(24, 48), np.arange(24)
    rows = [video_row("a/clip.mp4", "x1"), video_row("b/clip.mp4", "x2")]
    write_published(tmp_path, rows[0], 0, thw, ids)
    path = raw(rows)
    _, out = make(path, "--from-selection", tmp_path)
    assert [row["id"] for row in read_rows(out)] == ["x1"]
    assert [(f["id"], f["kind"]) for f in failures(out)] == [("x2", "NoSelection")]
    # Of the same id and stem, but another file.
    wrong = write_published(tmp_path, rows[1], 1, thw, ids, name="/mnt/data/b/clip.avi")
    _, out = make(path, "--from-selection", tmp_path)
    assert [f["id"] for f in failures(out)] == ["x2"]
    for file in tmp_path.glob(f"{wrong.name}.*"):
        file.unlink()
    # Made where the data set was mounted elsewhere: the same id and file name.
    write_published(tmp_path, rows[1], 1, thw, ids, name="/mnt/data/b/clip.mp4")
    _, out = make(path, "--from-selection", tmp_path)
    assert len(read_rows(out)) == 2
    # With two of them there is no telling.
    write_published(tmp_path, rows[1], 1, thw, ids, name="/mnt/other/clip.mp4")
    _, out = make(path, "--from-selection", tmp_path)
    assert [f["id"] for f in failures(out)] == ["x2"]


def test_another_selection_makes_the_pack_again(raw, make, tmp_path, capsys):
    row = video_row("a/clip.mp4", "x1")
    path, ids = raw([row]), np.arange(24)
    for seed, expected in ((0, "1 ok, 0"), (0, "0 ok, 1"), (1, "1 ok, 0")):
        write_published(tmp_path, row, 0, recipe(24, 48, seed), ids)
        make(path, "--from-selection", tmp_path)
        assert f"videos: {expected} skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"square_size": 448}, "square_size = 448, not 64"),
        ({"patch": 14}, "patch = 14, not 16"),
        ({"padding_policy": "exclude"}, "padding_policy = exclude, not zero"),
        ({"keep_frames_equiv": 8}, "give --num-images 8"),
        ({"keep_frames_equiv": 2}, "48 patches, more than the 32"),
    ],
)
def test_files_for_another_shape_are_refused(raw, make, tmp_path, changes, message):
    row = video_row("a/clip.mp4", "x1")
    write_published(tmp_path, row, 0, recipe(24, 48), np.arange(24), **changes)
    _, out = make(raw([row]), "--from-selection", tmp_path)
    assert message in failures(out)[0]["reason"]


def test_damaged_files_are_refused(tmp_path):
    options = MosaicOptions(size=64, num_images=3, given_selection=True)
    row = video_row("a/clip.mp4", "x1")
    good = recipe(24, 48)
    for thw, message in (
        ([[24, 0, 0]], "outside of 24 frames"),
        ([[0, 4, 0]], "of 4 x 4 patches"),
        ([[0, -1, 0]], "outside"),
        ([0, 1], r"is int32 \[2\], not integers \[N, 3\]"),
    ):
        prefix = write_published(tmp_path, row, 0, thw, np.arange(24))
        with pytest.raises(ValueError, match=message):
            read_selection(str(prefix), options)
    prefix = write_published(tmp_path, row, 0, good, np.arange(24))
    assert read_selection(str(prefix), options).mosaics == 3
    file = tmp_path / f"{prefix.name}.visidx_thw.npy"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="is no array of numbers"):
        read_selection(str(prefix), options)


def test_hostile_ids_in_file_names(raw, make, tmp_path):
    rows = [video_row("one.mp4", i) for i in ("../../x", "", "a/b", "x" * 300)]
    path, folder = raw(rows), tmp_path / "deep" / "stage1"
    make(path, "--write-selection", folder)
    names = [file.name for file in folder.iterdir()]
    assert len(names) == 12 and all(re.fullmatch(r"sample_[\w.-]{1,240}", name) for name in names)
    status, out = make(path, "--from-selection", folder, out="b")
    assert status == 0 and len(read_rows(out)) == 4


def test_scores_are_not_computed_for_given_files(raw, make, tmp_path, monkeypatch):
    row = video_row("a/clip.mp4", "x1")
    write_published(tmp_path, row, 0, recipe(24, 48), np.arange(24))

    def refuse(*_):
        raise AssertionError("scored")

    monkeypatch.setattr("codecvit.codec.clip.estimate_motion", refuse)
    with pytest.raises(AssertionError, match="scored"):
        make(raw([row]))
    assert make(raw([row]), "--from-selection", tmp_path)[0] == 0
