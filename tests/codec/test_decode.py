from __future__ import annotations

import pickle
import wave

import av
import numpy as np
import pytest

from codecvit.codec import decode
from codecvit.codec.decode import decode_frames as decode_view
from codecvit.codec.decode import decode_sequentially as decode_view_sequentially
from codecvit.codec.errors import MediaError
from codecvit.codec.sampling import Sampling
from codecvit.codec.view import View

ALL = Sampling(64)
SMALL = View("crop", 56, 14)


def decode_frames(path, sampling, view=SMALL):
    return decode_view(path, sampling, view)


def decode_sequentially(path, sampling, view=SMALL, count=0):
    return decode_view_sequentially(path, sampling, view, count)


def _assert_same(a, b):
    np.testing.assert_array_equal(a.ids_M, b.ids_M)
    np.testing.assert_allclose(a.seconds_M, b.seconds_M, atol=1e-9)
    np.testing.assert_array_equal(a.yuv_M3HW, b.yuv_M3HW)
    assert a.code == b.code


@pytest.fixture
def no_fallback(monkeypatch):
    def refuse(*_):
        raise AssertionError("fell back to decoding everything")

    monkeypatch.setattr(decode, "decode_sequentially", refuse)


@pytest.mark.parametrize("num_frames", [3, 20, 64])
def test_skipping_gives_the_frames_of_full_decoding(
    tmp_path, write_video, texture, no_fallback, num_frames
):
    frames = np.stack([texture(i // 3, 64, 96) for i in range(70)])
    path = write_video(tmp_path / "b.mp4", frames, gop=9, b_frames=2)
    sampling = Sampling(num_frames)
    _assert_same(decode_frames(path, sampling), decode_sequentially(path, sampling))


def test_skipping_gives_the_frames_of_full_decoding_on_real_clips(healthy):
    for path in healthy:
        # Odd numbers of samples and a late start hit other frames than the key frames.
        sampling = Sampling(23, start=0.05, end=9.0)
        _assert_same(decode_frames(path, sampling), decode_sequentially(path, sampling))
        with decode.open_video(path) as (container, stream):
            usable = decode.read_index(container, stream).usable
        assert usable == (path.suffix != ".avi")


def test_few_samples_of_a_long_clip_decode_few_frames(
    tmp_path, write_video, texture, no_fallback, monkeypatch
):
    """Groups without a wanted frame are jumped over, and B frames that nobody wants are skipped."""
    frames = np.stack([texture(i // 4, 48, 48) for i in range(200)])
    path = write_video(tmp_path / "b.mp4", frames, gop=10, b_frames=2)
    decoded = []
    decode_group = decode._decode_group

    def spy(container, stream, wanted):
        for frame in decode_group(container, stream, wanted):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(decode, "_decode_group", spy)
    found = decode_frames(path, Sampling(4))
    assert len(found.ids_M) == 4
    assert len(decoded) < 4 * 10 * 0.6  # of four groups, less than the two thirds that are B frames


def test_frames_are_those_of_the_source(tmp_path, write_video):
    # Flat frames survive the encoder: frame i is grey level 10 i + 20.
    levels = 10 * np.arange(20) + 20
    frames = np.broadcast_to(levels[:, None, None, None], (20, 48, 64, 3)).astype(np.uint8)
    path = write_video(tmp_path / "grey.mp4", frames, b_frames=2, gop=7)
    found = decode_frames(path, Sampling(6))
    expected_ids = [0, 3, 7, 11, 15, 19]
    assert found.ids_M.tolist() == expected_ids
    np.testing.assert_allclose(found.seconds_M, np.array(expected_ids) / 25, atol=1e-6)
    luma = found.yuv_M3HW[:, 0].mean(axis=(1, 2))
    np.testing.assert_allclose((luma - 16) * 255 / 219, levels[expected_ids], atol=2)


def test_packets_without_times_are_decoded_in_order(tmp_path, write_video, texture):
    frames = np.stack([texture(i // 2, 48, 64) for i in range(30)])
    plain = decode_frames(write_video(tmp_path / "a.mp4", frames, b_frames=2), Sampling(9))
    timeless = decode_frames(write_video(tmp_path / "a.avi", frames, b_frames=2), Sampling(9))
    np.testing.assert_array_equal(timeless.ids_M, plain.ids_M)
    np.testing.assert_allclose(timeless.seconds_M, plain.seconds_M, atol=0.05)
    np.testing.assert_array_equal(timeless.yuv_M3HW, plain.yuv_M3HW)


def test_a_wrong_guess_of_the_frame_count_changes_nothing(tmp_path, write_video, texture):
    frames = np.stack([texture(i, 48, 48) for i in range(20)])
    path = write_video(tmp_path / "a.mp4", frames)
    truth = decode_sequentially(path, Sampling(6), count=20)
    for guess in (0, 7, 40):
        _assert_same(decode_sequentially(path, Sampling(6), count=guess), truth)


@pytest.mark.parametrize("codec", ["png", "mjpeg", "ffv1"])
def test_every_pixel_format_gives_its_colour(tmp_path, write_video, codec):
    pix_fmt = {"png": "rgb24", "mjpeg": "yuvj420p", "ffv1": "gray"}[codec]
    suffix = "mov" if codec == "png" else "mkv"
    colour = (100, 100, 100) if pix_fmt == "gray" else (200, 40, 90)
    frames = np.broadcast_to(np.array(colour, np.uint8), (3, 48, 50, 3))
    path = write_video(tmp_path / f"a.{suffix}", frames, codec=codec, pix_fmt=pix_fmt)
    found = decode_frames(path, ALL)
    assert found.code.full == (codec == "mjpeg")
    rgb = decode_rgb(found)
    np.testing.assert_allclose(rgb[:, 20:30, 20:30].mean(axis=(0, 1, 2)), colour, atol=4)


def decode_rgb(found):
    from codecvit.codec.colour import yuv_to_rgb

    return yuv_to_rgb(found.yuv_M3HW, found.code)


def test_view_is_the_centre_with_the_short_side_scaled(tmp_path, write_video):
    # Three vertical stripes; the middle square of a 3:1 picture is the green one.
    stripes = np.zeros((2, 48, 144, 3), np.uint8)
    for i in range(3):
        stripes[:, :, 48 * i : 48 * (i + 1), i] = 255
    rgb = decode_rgb(decode_frames(write_video(tmp_path / "wide.mp4", stripes), ALL))
    assert rgb.shape == (2, 56, 56, 3)
    assert (rgb[:, 4:-4, 4:-4].argmax(axis=-1) == 1).all()
    tall = stripes.swapaxes(1, 2)
    rgb = decode_rgb(decode_frames(write_video(tmp_path / "tall.mp4", tall), ALL))
    assert (rgb[:, 4:-4, 4:-4].argmax(axis=-1) == 1).all()


def test_pixel_aspect_counts(tmp_path, write_video):
    # 48 x 48 pixels that are three times as wide as high: the view shows the middle third.
    stripes = np.zeros((2, 48, 48, 3), np.uint8)
    for i in range(3):
        stripes[:, :, 16 * i : 16 * (i + 1), i] = 255
    path = write_video(tmp_path / "a.mp4", stripes, aspect=3)
    rgb = decode_rgb(decode_frames(path, ALL))
    assert (rgb[:, 4:-4, 8:-8].argmax(axis=-1) == 1).all()


def test_recorded_turn_is_applied(media):
    path = media / "rotated_90_568x320.mov"
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation == -90  # to be turned clockwise
        height, width = 224, round(frame.width * 224 / frame.height)
        raw = frame.reformat(width, height, "yuv444p", dst_color_range="MPEG").to_ndarray()[0]
    left = (width - 224) // 2
    upright = decode_frames(path, ALL, View("crop", 224, 14)).yuv_M3HW[0, 0]
    np.testing.assert_array_equal(upright, np.rot90(raw[:, left : left + 224], k=-1))


def test_short_clips_give_each_frame_once(media):
    for name, frames in (("rotated_90_568x320.mov", 3), ("unordered_pts_50x50.mov", 4)):
        found = decode_frames(media / name, ALL)
        assert found.ids_M.tolist() == list(range(frames))
        assert (np.diff(found.seconds_M) > 0).all()


def test_damaged_stream_gives_the_frames_that_are_left(media):
    found = decode_frames(media / "corrupted.mp4", ALL)
    assert 1 <= len(found.ids_M) < 50


def test_truncated_file_gives_the_frames_that_are_left(tmp_path, write_video, texture):
    frames = np.stack([texture(i, 64, 64) for i in range(40)])
    whole = write_video(tmp_path / "a.mkv", frames)
    cut = tmp_path / "cut.mkv"
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    found = decode_frames(cut, ALL)
    assert 10 <= len(found.ids_M) < 40
    np.testing.assert_array_equal(found.yuv_M3HW[:10], decode_frames(whole, ALL).yuv_M3HW[:10])


def _audio(path):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(8000))


def _audio_with_cover(path):
    with av.open(str(path), "w", format="flac") as container:
        audio = container.add_stream("flac", rate=8000)
        audio.layout = "mono"
        cover = container.add_stream("png", rate=1)
        cover.width = cover.height = 32
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic.value
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), layout="mono")
        sound.sample_rate = 8000
        for packet in [*cover.encode(picture), *audio.encode(sound), *audio.encode()]:
            container.mux(packet)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("missing.mp4", lambda path: None, "No such file"),
        ("empty.mp4", lambda path: path.touch(), "cannot be opened"),
        ("text.mp4", lambda path: path.write_text("not a video\n" * 50), "cannot be opened"),
        ("folder.mp4", lambda path: path.mkdir(), "needs its frame rate in fps.txt"),
        ("sound.wav", _audio, "no video stream"),
        ("cover.flac", _audio_with_cover, "no video stream"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, make, reason):
    path = tmp_path / name
    make(path)
    with pytest.raises(MediaError, match=reason) as error:
        decode_frames(path, ALL)
    assert error.value.path == str(path)
    assert str(path) in str(error.value)
    assert error.value.reason in str(error.value)


def test_cover_test_file_does_have_a_picture(tmp_path):
    _audio_with_cover(tmp_path / "cover.flac")
    with av.open(str(tmp_path / "cover.flac")) as container:
        assert len(container.streams.video) == 1


def test_stream_of_noise_holds_no_frame(tmp_path, write_video, texture):
    path = write_video(tmp_path / "a.mp4", np.stack([texture(i, 48, 48) for i in range(5)]))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") if data.index(b"moov") > start else len(data)
    data[start : end - 4] = bytes(end - 4 - start)
    path.write_bytes(data)
    with pytest.raises(MediaError, match="no frame"):
        decode_frames(path, ALL)


def test_span_outside_the_clip_says_how_long_it_is(tmp_path, write_video, texture):
    path = write_video(tmp_path / "a.mp4", np.stack([texture(i, 48, 48) for i in range(10)]))
    for decode_some in (decode_frames, decode_sequentially):
        with pytest.raises(MediaError, match=r"start = 5.*0\.360"):
            decode_some(path, Sampling(4, start=5))


def test_titles_that_are_no_utf8_do_no_harm(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "QQQQQQQQ"
        stream = container.add_stream("mpeg4", rate=25)
        stream.height = stream.width = 48
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 48, 3), np.uint8), format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    data = path.read_bytes()
    assert data.count(b"QQQQQQQQ") == 1
    path.write_bytes(data.replace(b"QQQQQQQQ", b"caf\xe9 \xff\xff\xff"))
    assert len(decode_frames(path, ALL).ids_M) == 1


def test_media_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(MediaError("a.mp4", "is odd")))  # noqa: S301
    assert (error.path, error.reason, str(error)) == ("a.mp4", "is odd", "a.mp4: is odd")
    assert isinstance(error, ValueError)


def test_files_are_closed(tmp_path, write_video, texture):
    from pathlib import Path

    path = write_video(tmp_path / "a.mp4", np.stack([texture(i, 48, 48) for i in range(5)]))
    (tmp_path / "bad.mp4").write_text("no video")
    decode_frames(path, ALL)
    with pytest.raises(MediaError):
        decode_frames(tmp_path / "bad.mp4", ALL)
    handles = Path("/proc/self/fd")
    if not handles.is_dir():
        pytest.skip("needs /proc")
    open_files = [str(link.readlink()) for link in handles.iterdir() if link.is_symlink()]
    assert not [name for name in open_files if str(tmp_path) in name]
