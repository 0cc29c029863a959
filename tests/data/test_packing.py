"""One file -> records: views, gaps and groups."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest

from codecvit.codec.clip import sample_clip
from codecvit.codec.config import SelectionConfig
from codecvit.codec.pack import pack_groups, pack_video
from codecvit.data import packing
from codecvit.data.packing import PackOptions, pack_item
from codecvit.data.record import Storage, decode_record
from codecvit.data.sources import list_items

FRAMES, RATE = 90, 10


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    """Nine seconds of a square that crosses a textured ground, 96 x 64."""
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    rng = np.random.default_rng(0)
    ground = rng.integers(40, 120, (64, 96, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(FRAMES):
            frame = ground.copy()
            frame[20:44, i % 70 : i % 70 + 24] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def _records(path, **options):
    options = {"size": 56, "budget": 40, "storage": Storage("raw"), **options}
    (item,) = list_items([path])
    (packed,) = pack_item({"set": PackOptions(**options)}, item).values()
    return [(decode_record(p.data), p.entry) for p in packed]


@pytest.mark.parametrize(
    ("geometry", "view"), [("crop", (56, 56)), ("fit", (42, 56)), ("square", (56, 56))]
)
def test_records_state_their_view(clip_path, geometry, view):
    ((record, _),) = _records(clip_path, geometry=geometry, num_frames=8)
    assert record.view == view
    expected = pack_video(clip_path, "codec", 8, 40, 56, geometry=geometry)
    np.testing.assert_array_equal(record.sequence.positions, expected.positions)
    np.testing.assert_array_equal(record.sequence.patches, expected.patches)


def test_gaps_are_the_seconds_to_what_a_sample_is_compared_with(clip_path):
    ((plain, entry),) = _records(clip_path, num_frames=4)
    np.testing.assert_allclose(plain.gaps, np.diff(plain.pts), atol=1e-6)
    assert entry["gap"] == pytest.approx(2.9, abs=0.11)
    ((near, entry),) = _records(clip_path, num_frames=4, selection=SelectionConfig(pair_dt=0.2))
    np.testing.assert_allclose(near.gaps, 0.2, atol=1e-6)
    assert entry["gap"] == pytest.approx(0.2)
    np.testing.assert_array_equal(near.pts, plain.pts)
    assert (near.sequence.positions != plain.sequence.positions).any()


def test_time_and_index_agree_at_a_constant_rate(clip_path):
    by_index, by_time = (
        _records(clip_path, num_frames=9, sampling=by)[0][0] for by in ("index", "time")
    )
    np.testing.assert_allclose(by_time.pts, by_index.pts, atol=1 / RATE)


def test_groups_become_records_of_their_own(clip_path):
    config = SelectionConfig(policy="groups", policy_arg=25)
    found = _records(clip_path, num_frames=FRAMES, selection=config)
    assert [record.group for record, _ in found] == [(0, 0), (1, 25), (2, 50), (3, 75)]
    keys = [record.key for record, _ in found]
    assert keys == [f"a.mp4#{place}" for place in range(4)]
    assert [entry["key"] for _, entry in found] == keys
    clip = sample_clip(clip_path, FRAMES, 56, config=config)
    pts = np.concatenate([record.pts for record, _ in found])
    np.testing.assert_allclose(pts, clip.seconds_M, atol=1e-6)
    sequences = pack_groups(clip_path, FRAMES, 40, 56, config=config)
    for (record, _), sequence in zip(found, sequences, strict=True):
        assert len(record.sequence) == 40
        np.testing.assert_array_equal(record.sequence.patches, sequence.patches)
        np.testing.assert_array_equal(record.sequence.positions, sequence.positions)
        np.testing.assert_array_equal(record.sequence.patches[0].shape, (14, 14, 3))
    descriptors = {record.descriptor.tobytes() for record, _ in found}
    assert len(descriptors) == 4  # each of its own samples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 65}, "num_frames = 65 must lie in 1..64"),
        ({"geometry": "pad"}, "geometry = 'pad'"),
        (
            {"modes": ("codec", "frames"), "selection": SelectionConfig(policy="groups")},
            "records of mode codec alone, not 'codec,frames'",
        ),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        PackOptions(**options)


def test_packing_warns_of_wide_gaps(clip_path, tmp_path, capsys):
    from codecvit.data.pack import main

    common = [str(clip_path), "--size", "56", "--budget", "40", "--workers", "0"]
    assert main([*common, "--out", str(tmp_path / "few"), "--num-frames", "4"]) == 0
    found = capsys.readouterr().out
    assert "warning: in 1 records samples lie more than 1 s apart" in found
    manifest = json.loads((tmp_path / "few" / "codec" / "manifest.json").read_text())
    assert manifest["wide_gaps"] == 1
    assert main([*common, "--out", str(tmp_path / "many"), "--num-frames", "20"]) == 0
    near = ["--num-frames", "4", "--set", "pair_dt=0.2"]
    assert main([*common, "--out", str(tmp_path / "near"), *near]) == 0
    assert "warning" not in capsys.readouterr().out


def test_sets_of_one_file_are_what_each_alone_is(clip_path, monkeypatch):
    """Several budgets and views from as few decodes as they need."""
    (item,) = list_items([clip_path])
    small = {"size": 32, "patch": 16, "num_frames": 8}
    wanted = {
        "codec8": PackOptions(modes=("codec",), budget=8, **small),
        "codec12": PackOptions(modes=("codec",), budget=12, **small),
        "frames2": PackOptions(modes=("frames",), budget=8, **small),
        "shifted": PackOptions(modes=("frames",), budget=8, phase=0.0, **small),
        "left": PackOptions(modes=("codec",), budget=8, cut_at=0.0, **small),
    }
    decodes = []

    def counted(*args, **options):
        decodes.append(options)
        return sample_clip(*args, **options)

    monkeypatch.setattr(packing, "sample_clip", counted)
    together = pack_item(wanted, item)
    assert len(decodes) == 3
    alone = {name: pack_item({name: options}, item)[name] for name, options in wanted.items()}
    assert together == alone
    assert len({packed.data for (packed,) in together.values()}) == 5
