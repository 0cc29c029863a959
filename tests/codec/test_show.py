from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image

from codecvit.codec.animation import animation
from codecvit.codec.clip import sample_clip
from codecvit.codec.config import SelectionConfig
from codecvit.codec.panels import GAP, STRIP, Picked, colours, tiles
from codecvit.codec.selection import choose_groups
from codecvit.codec.show import main
from codecvit.codec.view import View


@pytest.fixture
def video(tmp_path, write_video, scene):
    """20 frames at 25 a second."""
    return write_video(tmp_path / "a.mp4", scene("right", frames=20)[0])


def _picked(path, budget=64 + 80, num_frames=20, **options):
    clip = sample_clip(path, num_frames, 112, **options)
    return Picked.of(clip, choose_groups(clip, budget))


def test_writes_a_sheet(tmp_path, video, capsys):
    out = tmp_path / "deep" / "a.png"
    options = ["--size", "112", "--budget", "200", "--frames", "9", "--set", "scale=sqrt"]
    assert main([str(video), "--out", str(out), *options]) == 0
    assert "200 of 1280 patches of 20 frames" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.width > 3 * 112
        assert sheet.height > 3 * 112
        plain = np.asarray(sheet)
    assert main([str(video), "--out", str(out), *options, "--heatmap"]) == 0
    with Image.open(out) as sheet:
        assert sheet.size == plain.shape[1::-1]
        assert (np.asarray(sheet) != plain).any()


def test_chosen_patches_are_lit_and_the_rest_is_dark(video):
    picked = _picked(video)
    assert picked.lit_MRC.sum() == 64 + 80
    rgb = picked.clip.rgb()
    for frame in range(20):
        tile = picked.lit(frame)
        mask = picked.lit_MRC[frame].repeat(14, axis=0).repeat(14, axis=1)
        np.testing.assert_array_equal(tile[mask], rgb[frame][mask])
        dark = tile[~mask]
        assert (dark <= 0.3 * 255).all()
        assert (dark.max(axis=-1) == dark.min(axis=-1)).all()


def test_labels_tell_time_type_and_share_of_the_budget(video):
    picked = _picked(video)
    assert picked.label(0) == "0.00 s  I  44.4%"
    assert picked.label(5).startswith("0.20 s  P  ")
    shares = [float(picked.label(i).split()[-1].rstrip("%")) for i in range(20)]
    assert sum(shares) == pytest.approx(100, abs=1)


def test_groups_have_their_number_and_their_own_budget(video):
    config = SelectionConfig(policy="groups", policy_arg=10)
    picked = _picked(video, config=config)
    assert picked.groups == 2
    assert picked.label(9).endswith("group 0")
    assert picked.label(10) == "0.40 s  P  44.4%  group 1"
    assert picked.lit_MRC[10].all()  # the anchor of the second group


def test_saliency_is_light_where_the_score_is_high(video):
    ramp = colours(np.linspace(0, 1, 50)).astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(ramp) > 0).all()
    picked = _picked(video, geometry="square")
    clip = picked.clip
    heat = picked.heat(5)
    assert heat.shape == (112, 112, 3)
    best = np.unravel_index(clip.scores_MRC[5].argmax(), (8, 8))
    light = heat.reshape(8, 14, 8, 14, 3).mean(axis=(1, 3, 4))
    assert light[best] == light.max()
    assert light[clip.scores_MRC[5] < 0.05].max(initial=0) < light.max()


def test_padding_has_no_saliency(tmp_path, write_video, texture):
    frames = np.stack([texture(i, 48, 96) for i in range(3)])
    picked = _picked(write_video(tmp_path / "w.mp4", frames), geometry="square")
    assert not picked.heat(1)[:28].any()
    assert picked.heat(1)[28:84].any()


def test_tiles_stand_where_they_should():
    pictures = [np.full((10, 20, 3), 50 + i, np.uint8) for i in range(5)]
    sheet = np.asarray(tiles(pictures, [""] * 5, 2, 3))
    assert sheet.shape == (GAP + 3 * (30 + STRIP + GAP), GAP + 2 * (60 + GAP), 3)
    for i in range(5):
        top, left = GAP + i // 2 * (30 + STRIP + GAP), GAP + i % 2 * (60 + GAP)
        assert (sheet[top : top + 30, left : left + 60] == 50 + i).all()


def test_an_animation_plays_the_video_beside_its_samples(video):
    """At each moment: the frame that plays, and the last sample before it with its saliency."""
    picked = _picked(video, num_frames=5)
    clip = picked.clip
    assert clip.frame_ids_M.tolist() == [0, 4, 9, 14, 19]
    pictures = [
        np.asarray(p) for p in animation(video, View("crop", 112, 14), picked, rate=25, seconds=9)
    ]
    assert len(pictures) == 20
    frames = sample_clip(video, 20, 112).rgb()
    for number, picture in enumerate(pictures):
        sample = np.searchsorted(clip.frame_ids_M, number, side="right") - 1
        panels = [frames[number], clip.rgb()[sample], picked.heat(sample), picked.lit(sample)]
        for i, panel in enumerate(panels):
            left = GAP + i * (224 + GAP)
            np.testing.assert_array_equal(
                picture[GAP : GAP + 224 : 2, left : left + 224 : 2], panel
            )


def test_an_animation_lasts_no_longer_than_asked(video):
    view = View("crop", 112, 14)
    assert len(list(animation(video, view, _picked(video), rate=10, seconds=0.31))) == 4
    one = _picked(video, num_frames=1)
    assert len(list(animation(video, view, one, rate=10, seconds=5))) == 1


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
def test_animations_open_elsewhere(tmp_path, video, name):
    out = tmp_path / name
    options = ["--size", "112", "--budget", "200", "--fps", "10", "--num-frames", "6"]
    assert main([str(video), "--out", str(out), *options]) == 0
    if name == "a.gif":
        with Image.open(out) as found:
            assert found.n_frames == 8
            assert found.info["duration"] == 100
    else:
        with av.open(str(out)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name != "libx264"
            assert stream.average_rate == 10
            assert len(list(container.decode(stream))) == 8
            assert b"x264" not in out.read_bytes()


def test_a_folder_of_images_plays_too(tmp_path, scene):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(scene("up", frames=6)[0]):
        Image.fromarray(frame).save(folder / f"{i}.png")
    (folder / "fps.txt").write_text("6")
    options = ["--size", "112", "--budget", "100", "--fps", "6"]
    assert main([str(folder), "--out", str(tmp_path / "a.gif"), *options]) == 0
    with Image.open(tmp_path / "a.gif") as found:
        assert found.n_frames == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.mp4"], "missing.mp4: cannot be opened"),
        (["missing.mp4", "--set", "scale=loud"], "scale = 'loud'"),
        (["missing.mp4", "--frames", "0"], "--frames = 0"),
        (["missing.mp4", "--fps", "nan"], "--fps = nan"),
    ],
)
def test_failures_are_told_on_one_line_and_leave_nothing(tmp_path, capsys, arguments, message):
    assert main([*arguments, "--out", str(tmp_path / "a.png")]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_endings_are_refused(tmp_path, video, capsys):
    assert main([str(video), "--out", str(tmp_path / "a.avi")]) == 1
    assert "must end in one of .mp4, .gif, .png" in capsys.readouterr().err
