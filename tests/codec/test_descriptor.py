from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from codecvit.codec.clip import sample_clip
from codecvit.codec.descriptor import (
    DESCRIPTOR_SIZE,
    SIZES,
    WEIGHTS,
    descriptor,
    descriptor_image,
)
from codecvit.codec.descriptor import _pair_ids as pair_ids

MOTIONS = ("left", "right", "up", "down", "cw", "ccw", "grow", "shrink")


def _parts(feature):
    ends = np.cumsum(list(SIZES.values()))
    return dict(zip(SIZES, np.split(feature, ends[:-1]), strict=True))


def test_motions_are_told_apart(scene, clip_of):
    """Nearest centroid over 8 motions of unlike objects over unlike grounds: far above 1/8."""
    features = np.array(
        [[descriptor(clip_of(scene(m, seed)[0])) for seed in range(7)] for m in MOTIONS]
    )
    centroids = features[:, :4].mean(axis=1)
    distance = np.linalg.norm(features[:, 4:, None] - centroids, axis=-1)
    right = distance.argmin(axis=-1) == np.arange(8)[:, None]
    assert right.mean() >= 0.8, right.mean(axis=1)


@pytest.mark.parametrize(("motion", "bin_"), [("right", 0), ("down", 2), ("left", 4), ("up", 6)])
def test_heading_names_the_direction(scene, clip_of, motion, bin_):
    heading = _parts(descriptor(clip_of(scene(motion)[0])))["heading"].reshape(4, 8)
    assert (heading.argmax(axis=1) == bin_).all()


@pytest.mark.parametrize(("motion", "bin_"), [("grow", 0), ("cw", 2), ("shrink", 4), ("ccw", 6)])
def test_turning_names_rotation_and_change_of_size(scene, clip_of, motion, bin_):
    turning = np.mean(
        [_parts(descriptor(clip_of(scene(motion, s)[0])))["turning"][:8] for s in range(3)], axis=0
    )
    assert turning.argmax() == bin_


def test_order_of_time_counts(scene, clip_of):
    frames, _ = scene("right")
    there = _parts(descriptor(clip_of(np.concatenate([frames, frames[::-1]]))))["heading"]
    back = _parts(descriptor(clip_of(np.concatenate([frames[::-1], frames]))))["heading"]
    np.testing.assert_allclose(there[:8], back[:8], atol=0.2)  # the whole clip is alike
    assert np.linalg.norm(there[8:16] - back[8:16]) > 0.3  # its first third is not


def test_parts_have_their_weight_as_norm(scene, clip_of):
    feature = descriptor(clip_of(scene("right")[0]))
    assert feature.dtype == np.float32
    assert feature.shape == (DESCRIPTOR_SIZE,)
    for name, part in _parts(feature).items():
        assert np.linalg.norm(part) == pytest.approx(WEIGHTS[name], rel=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 3, 9, 64])
def test_length_does_not_depend_on_the_clip(scene, clip_of, frames):
    made = scene("right", frames=64, speed=0.8)[0][:frames]
    feature = descriptor(clip_of(made))
    assert feature.shape == (DESCRIPTOR_SIZE,)
    assert np.isfinite(feature).all()
    has_motion = any(part.any() for name, part in _parts(feature).items() if name == "heading")
    assert has_motion == (frames > 1)


def test_images_and_single_frames_have_no_motion(texture, clip_of):
    picture = texture(0, 112, 112)
    of_image, of_clip = descriptor_image(picture), descriptor(clip_of(picture[None]))
    motion = slice(SIZES["colour"] + SIZES["edges"], None)
    assert not of_image[motion].any()
    assert not of_clip[motion].any()
    np.testing.assert_allclose(of_image, of_clip, atol=0.02)


def test_size_of_the_view_hardly_matters(tmp_path, write_video, scene, texture):
    path = write_video(tmp_path / "a.mp4", scene("right", size=224, side=88, speed=3.2)[0])
    other = write_video(tmp_path / "b.mp4", scene("ccw", seed=1, size=224, side=88)[0])
    small, large = (descriptor(sample_clip(path, size=size)) for size in (112, 224))
    unlike = descriptor(sample_clip(other, size=224))
    assert np.linalg.norm(small - large) < 0.4 * np.linalg.norm(unlike - large)


def test_camera_alone_is_no_motion(texture, clip_of):
    wide = texture(5, 112, 224)
    pan = np.stack([wide[:, 2 * i : 2 * i + 112] for i in range(24)])
    still = np.stack([wide[:, :112]] * 24)
    for frames in (pan, still):
        assert _gain(clip_of(frames)) < 0.01 * _gain(clip_of(_with_object(frames)))


def _gain(clip):
    from codecvit.codec.descriptor import _residual_motion

    return _residual_motion(clip, *pair_ids(clip.seconds_M))[1].sum()


def _with_object(frames):
    out = frames.copy()
    for i, frame in enumerate(out):
        frame[40:72, 10 + 2 * i : 42 + 2 * i] = frames[0, 72:104, 40:72][::-1, ::-1]
    return out


def test_shape_follows_what_moves_whatever_its_place_and_size(texture, clip_of):
    """A figure is nearer to itself elsewhere, in another size, than to another one in its place."""
    elsewhere = {"start": (62, 60), "step": (-1.5, -1.0), "side": 26}
    here = {"start": (30, 34), "step": (1.5, 0.0), "side": 56}
    of = {
        (figure, place): _parts(descriptor(clip_of(_moving_figure(texture, figure, **options))))
        for figure in ("tee", "ring")
        for place, options in (("here", here), ("elsewhere", elsewhere))
    }

    def distance(a, b):
        return np.linalg.norm(of[a]["shape"] - of[b]["shape"])

    for figure, other in (("tee", "ring"), ("ring", "tee")):
        itself = distance((figure, "here"), (figure, "elsewhere"))
        assert itself < 0.7 * distance((figure, "here"), (other, "here"))
        assert itself < 0.7 * distance((figure, "here"), (other, "elsewhere"))


def _moving_figure(texture, figure, start, step, side):
    """uint8 [24, 112, 112, 3]: a bright figure that moves from its centre `start` over a dark
    ground, `step` pixels (x, y) a frame."""
    y, x = (np.mgrid[:64, :64] - 31.5) / 32
    if figure == "tee":
        ink = ((abs(x) < 0.2) | (y < -0.55)) & (np.maximum(abs(x), abs(y)) < 0.95)
    else:
        ink = abs(np.hypot(x, y) - 0.75) < 0.2
    small = Image.fromarray(ink.astype(np.uint8) * 255).resize((side, side))
    ground = Image.fromarray(texture(3, 112, 112) // 3)
    frames = []
    for t in range(24):
        frame = ground.copy()
        corner = [round(start[i] + step[i] * t - side / 2) for i in (0, 1)]
        frame.paste((230, 230, 230), tuple(corner), small)
        frames.append(np.asarray(frame))
    return np.stack(frames)


def test_pairs_are_a_quarter_of_a_second_apart_but_no_more_than_an_eighth_of_the_clip():
    first, second = pair_ids(np.arange(64) * 0.05)
    assert (second - first == 5).all()
    assert (first[0], second[-1], len(first)) == (0, 63, 8)
    first, second = pair_ids(np.arange(24) * 0.05)
    assert (second - first == 3).all()
    first, second = pair_ids(np.arange(3) * 2.0)
    assert list(zip(first, second, strict=True)) == [(0, 1), (1, 2)]
