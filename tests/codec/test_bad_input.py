"""Whatever a file is, packing it gives a valid sequence or one clear error.

test_decode.py has the other named cases: empty files, text, audio with cover art, truncation.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from codecvit.codec import MediaError, pack_video
from codecvit.codec.clip import sample_clip

MUTATE = Path(__file__).with_name("mutate.py")


def _run_mutations(folder, first, count):
    command = [sys.executable, str(MUTATE), str(folder), str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    last = lines[-1] if lines else "before the first file"
    assert done.returncode == 0, f"{last} ended the process ({done.returncode}): {done.stderr}"
    assert len(lines) == count
    packed = sum(line.endswith("patches") for line in lines)
    assert 0.1 * count < packed < 0.9 * count  # the damages are neither all fatal nor all harmless
    return lines


def test_damaged_files_are_packed_or_refused(tmp_path):
    _run_mutations(tmp_path, 0, 200)


@pytest.mark.slow
def test_many_damaged_files_are_packed_or_refused(tmp_path):
    _run_mutations(tmp_path, 200, 4000)


def _jpeg(width, height, grey):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (grey, grey, grey)).save(file, "JPEG")
    return file.getvalue()


def _write_jpegs(path, pictures, times):
    """A Matroska file of JPEG pictures with the given times in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for place, (picture, time) in enumerate(zip(pictures, times, strict=True)):
            packet = av.Packet(picture)
            packet.pts, packet.dts = time, min(time, 100 * place)
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 1000), stream, True
            container.mux(packet)
    return path


@pytest.mark.parametrize("geometry", ["crop", "fit", "square"])
def test_the_size_may_change_on_the_way(tmp_path, geometry):
    pictures = [_jpeg(64, 48, 50)] * 4 + [_jpeg(96, 160, 200)] * 4
    path = _write_jpegs(tmp_path / "a.mkv", pictures, range(0, 800, 100))
    clip = sample_clip(path, size=56, geometry=geometry)
    assert len(clip) == 8
    placement = clip.placement
    inside = clip.rgb()[:, placement.rows, placement.columns]
    np.testing.assert_allclose(inside.mean(axis=(1, 2, 3)), [50] * 4 + [200] * 4, atol=2)


def test_times_that_go_backwards_keep_the_order_of_the_decoder(tmp_path):
    greys = np.arange(20, 180, 20)
    times = [0, 300, 100, 200, 500, 400, 700, 600]
    path = _write_jpegs(tmp_path / "a.mkv", [_jpeg(64, 48, int(g)) for g in greys], times)
    clip = sample_clip(path, size=56)
    np.testing.assert_allclose(clip.rgb().mean(axis=(1, 2, 3)), greys, atol=2)
    assert (np.diff(clip.seconds_M) >= 0).all()


def test_a_variable_rate_keeps_its_times(tmp_path):
    times = [0, 100, 200, 1000, 1100, 5000]
    path = _write_jpegs(tmp_path / "a.mkv", [_jpeg(64, 48, 90)] * 6, times)
    clip = sample_clip(path, size=56)
    np.testing.assert_allclose(clip.seconds_M, np.array(times) / 1000, atol=1e-3)
    by_time = sample_clip(path, 3, size=56, sampling="time")
    np.testing.assert_allclose(by_time.seconds_M, [0, 1.1, 5], atol=1e-3)


def test_gif_plays_and_animated_webp_is_refused(tmp_path):
    frames = [Image.new("RGB", (60, 40), (40 * i, 90, 90)) for i in range(5)]
    options = {"save_all": True, "append_images": frames[1:]}
    frames[0].save(tmp_path / "a.gif", duration=[100, 300, 100, 50, 100], **options)
    clip = sample_clip(tmp_path / "a.gif", size=56)
    np.testing.assert_allclose(clip.seconds_M, [0, 0.1, 0.4, 0.5, 0.55], atol=0.011)
    frames[0].save(tmp_path / "a.webp", duration=100, **options)
    with pytest.raises(MediaError, match=r"a\.webp: holds no frame that can be decoded"):
        pack_video(tmp_path / "a.webp", size=56)


def test_a_header_cannot_claim_gigabytes(tmp_path):
    """FFmpeg would allocate 15,000 x 15,000 pixels for a file of a few bytes."""
    Image.new("RGB", (60, 40)).save(tmp_path / "a.gif", save_all=True)
    data = bytearray((tmp_path / "a.gif").read_bytes())
    data[6:10] = struct.pack("<HH", 15_000, 15_000)
    (tmp_path / "a.gif").write_bytes(data)
    with pytest.raises(MediaError, match="no frame that can be decoded"):
        pack_video(tmp_path / "a.gif", size=56)


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [
        ("libx264", "yuv422p"),
        ("libx264", "yuv420p10le"),
        ("libx264", "yuv444p"),
        ("mjpeg", "yuvj422p"),
        ("ffv1", "gray10le"),
    ],
)
def test_sampling_and_depth_of_colour_do_not_matter(tmp_path, codec, pix_fmt):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    path = tmp_path / "a.mkv"
    ramp = np.broadcast_to(np.linspace(20, 230, 64).astype(np.uint8)[:, None], (48, 64, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(ramp), format="rgb24")
            if pix_fmt.startswith("yuvj"):
                frame = frame.reformat(format=pix_fmt, dst_color_range="JPEG")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = sample_clip(path, size=64, patch=16, geometry="fit").rgb()
    assert found.shape == (4, 48, 64, 3)
    assert np.abs(found.astype(int) - ramp).mean() < 5
