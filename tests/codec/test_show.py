from __future__ import annotations

import numpy as np
from PIL import Image

from codecvit.codec.clip import sample_clip
from codecvit.codec.selection import select
from codecvit.codec.show import contact_sheet, main


def test_writes_a_sheet(tmp_path, write_video, scene, capsys):
    video = write_video(tmp_path / "a.mp4", scene("right", frames=20)[0])
    out = tmp_path / "deep" / "a.png"
    options = ["--size", "112", "--budget", "200", "--frames", "9", "--set", "scale=sqrt"]
    assert main([str(video), "--out", str(out), *options]) == 0
    assert "200 of 1280 patches of 20 frames" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.width > 3 * 112
        assert sheet.height > 3 * 112


def test_chosen_patches_are_lit_and_the_rest_is_dark(tmp_path, write_video, scene):
    video = write_video(tmp_path / "a.mp4", scene("right", frames=20)[0])
    clip = sample_clip(video, size=112)
    (chosen,) = select(clip, "codec", 64 + 80)
    sheet = np.asarray(contact_sheet(clip, chosen, 64, "a.mp4"))
    rgb = clip.rgb()
    lit = 0
    for frame in range(20):
        # Tiles, twice as large as the view, stand in 5 columns 6 pixels apart, below a head and a
        # line of text each.
        left, top = 6 + frame % 5 * 230, 32 + frame // 5 * 250
        tile = sheet[top : top + 224 : 2, left : left + 224 : 2]
        same = (tile == rgb[frame]).reshape(8, 14, 8, 14, 3).all(axis=(1, 3, 4))
        lit += same.sum()
        dark = ~np.repeat(np.repeat(same, 14, axis=0), 14, axis=1)
        assert (tile[dark] <= 0.3 * 255).all()
        assert (tile[dark].max(axis=-1) == tile[dark].min(axis=-1)).all()
    assert lit == 64 + 80


def test_failures_are_told_on_one_line(tmp_path, capsys):
    out = ["--out", str(tmp_path / "a.png")]
    assert main([str(tmp_path / "missing.mp4"), *out]) == 1
    assert "missing.mp4: cannot be opened" in capsys.readouterr().err
    assert main(["missing.mp4", *out, "--set", "scale=loud"]) == 1
    assert "scale = 'loud'" in capsys.readouterr().err
    assert main(["missing.mp4", *out, "--frames", "0"]) == 1
    assert "--frames = 0" in capsys.readouterr().err
