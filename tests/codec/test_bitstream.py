from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import av
import numpy as np
import pytest

from codecvit.codec import MediaError, SelectionConfig
from codecvit.codec.bitstream import CodedMotion
from codecvit.codec.clip import sample_clip
from codecvit.codec.selection import choose
from codecvit.codec.view import View

CONFIG = SelectionConfig(signal="bitstream")


def _pan(texture, speed, frames=24):
    wide = texture(3, 128, 128 + speed * frames)
    return np.stack([wide[:, speed * i : speed * i + 128] for i in range(frames)])


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("step", [1, 4])
def test_vectors_add_up_from_sample_to_sample(
    tmp_path, write_video, texture, codec, b_frames, step
):
    """The picture moves left by 2 pixels a frame; samples lie `step` frames apart."""
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    path = write_video(tmp_path / "a.mp4", _pan(texture, 2), codec, gop=100, b_frames=b_frames)
    frames = 24 // step
    clip = sample_clip(path, frames, 128, 16, end=frames * step / 25 + 1e-6, config=CONFIG)
    steps = np.diff(clip.frame_ids_M)
    inner = clip.motion.vectors_TN2.reshape(len(clip) - 1, 8, 8, 2)[:, 1:-1, 1:-1]
    median = np.median(inner, axis=(1, 2))
    assert np.abs(median[:, 1]).max() <= 0.5 * step
    total = 2 * clip.frame_ids_M[-1]
    if codec == "mpeg4" and b_frames:
        # The motion of B frames is told by the P frame after them: in the end the sum is right.
        assert median[:, 0].sum() == pytest.approx(total, abs=6)
    else:
        right = np.abs(median[:, 0] - 2 * steps) <= 0.5 * steps
        assert right.mean() >= 0.95, median
        assert median[:, 0].sum() == pytest.approx(total, rel=0.1)


def test_vectors_are_in_pixels_of_the_motion_plane(tmp_path, write_video, texture):
    """Scaled to half, with patches of 8 pixels: a patch is 16 pixels of the file, as before."""
    path = write_video(tmp_path / "a.mp4", _pan(texture, 4), gop=100)
    whole = sample_clip(path, 24, 128, 16, config=CONFIG).motion.vectors_TN2
    half = sample_clip(path, 24, 64, 8, config=CONFIG).motion.vectors_TN2
    np.testing.assert_allclose(half, whole, atol=1e-4)
    assert np.median(whole[:, :, 0]) == pytest.approx(4, abs=0.5)


@pytest.mark.parametrize("geometry", ["crop", "square", "fit"])
def test_vectors_lie_where_the_motion_is(tmp_path, write_video, texture, geometry):
    """Only the lower right quarter of an oblong picture moves, downwards."""
    ground, moving = texture(1, 128, 256), texture(2, 400, 128)
    frames = np.stack([ground] * 20)
    for i in range(20):
        frames[i, 64:, 128:] = moving[200 - 3 * i : 264 - 3 * i]
    path = write_video(tmp_path / "a.mp4", frames, gop=100)
    size = 128 if geometry == "crop" else 256
    clip = sample_clip(path, 20, size, 16, geometry=geometry, config=CONFIG)
    motion = clip.motion
    down = np.median(motion.vectors_TN2, axis=0).reshape(motion.rows, motion.columns, 2)[..., 1]
    half = motion.columns // 2
    assert down[-3:, half + 1 :].mean() == pytest.approx(-3, abs=0.7)
    assert np.abs(down[:3]).max() < 1
    assert np.abs(down[:, : half - 1]).max() < 1


class _Turned:
    """A frame that is to be turned by `rotation` degrees anticlockwise."""

    def __init__(self, frame, rotation):
        self._frame, self.rotation = frame, rotation

    def __getattr__(self, name):
        return getattr(self._frame, name)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_recorded_turn_turns_the_vectors(tmp_path, write_video, texture, rotation):
    ground, moving = texture(1, 128, 256), texture(2, 400, 128)
    frames = np.stack([ground] * 3)
    for i in range(3):
        frames[i, 64:, 128:] = moving[200 - 6 * i : 264 - 6 * i]
    path = write_video(tmp_path / "a.mp4", frames)
    view = View("fit", 256, 16)
    fields = []
    for turn in (0, rotation):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            height, width = (128, 256) if turn % 180 == 0 else (256, 128)
            scaler = SimpleNamespace(view=view, placement=view.place(height, width))
            coded = CodedMotion(stream, scaler, np.array([0, 2]))
            for i, frame in enumerate(container.decode(stream)):
                coded.add(i, _Turned(frame, turn))
        fields.append(coded.vectors()[0].reshape(height // 16, width // 16, 2))
    straight, turned = fields
    # As complex numbers with y up, a quarter turn anticlockwise is a multiplication by i.
    expected = (straight[..., 0] - 1j * straight[..., 1]) * 1j ** (rotation // 90)
    expected = np.rot90(expected, rotation // 90)
    np.testing.assert_allclose(turned[..., 0], expected.real, atol=1e-5)
    np.testing.assert_allclose(turned[..., 1], -expected.imag, atol=1e-5)
    assert np.abs(expected).max() > 5


def test_every_codec_with_vectors_and_no_other(media):
    for name in ("people_h264_640x360.mp4", "action_mpeg4_320x240.avi"):
        clip = sample_clip(media / name, 16, 112, config=CONFIG)
        assert clip.motion.vectors_TN2.std() > 0.3, name
        assert len(choose(clip, 300)) == 300
    for name, codec in (("hevc_128x128.mp4", "hevc"), ("av1_640x360.mkv", "libdav1d")):
        with pytest.raises(MediaError, match=f"{codec}.*choose signal = estimate"):
            sample_clip(media / name, config=CONFIG)


def test_the_signals_see_the_same_motion(media):
    """Overlap of what they choose, far above chance: of 2,048 - 256 in 63 * 256 that is 0.11."""
    path = media / "people_h264_640x360.mp4"
    chosen = {}
    for signal in ("estimate", "bitstream"):
        clip = sample_clip(path, config=SelectionConfig(signal=signal))
        chosen[signal] = {tuple(p) for p in choose(clip, 2048).thw_L3[256:].tolist()}
    assert len(chosen["estimate"] & chosen["bitstream"]) > 0.5 * 1792


def test_a_clip_without_the_vectors_is_refused(tmp_path, write_video, texture):
    path = write_video(tmp_path / "a.mp4", _pan(texture, 2, frames=5))
    clip = sample_clip(path, 5, 112)
    with pytest.raises(ValueError, match="without the file's motion vectors"):
        dataclasses.replace(clip, config=CONFIG)
