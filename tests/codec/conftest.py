"""Made clips whose content is known, written with encoders that every FFmpeg build has."""

from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image

from codecvit.codec.clip import Clip
from codecvit.codec.colour import YuvCode
from codecvit.codec.config import SelectionConfig
from codecvit.codec.view import Placement

MOTIONS = ("left", "right", "up", "down", "cw", "ccw", "grow", "shrink")


@pytest.fixture(scope="session")
def healthy(media):
    """The real clips without damage."""
    return [
        path
        for path in sorted(media.iterdir())
        if path.suffix in (".mp4", ".avi", ".mkv", ".mov") and path.stem != "corrupted"
    ]


@pytest.fixture(scope="session")
def write_video():
    """write_video(path, frames uint8 [M, H, W, 3], ...): a file that plays them."""

    def write(
        path, frames, codec="mpeg4", rate=25, gop=12, b_frames=0, pix_fmt="yuv420p", aspect=None
    ):
        with av.open(str(path), "w") as container:
            options = {"bf": str(b_frames)}
            stream = container.add_stream(codec, rate=rate, options=options)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = pix_fmt
            stream.codec_context.gop_size = gop
            if codec == "mpeg4":
                stream.codec_context.qmin, stream.codec_context.qmax = 2, 3
            if aspect is not None:
                stream.sample_aspect_ratio = aspect
            for pixels in frames:
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                if pix_fmt.startswith("yuvj"):  # older PyAV would leave the range limited
                    frame = frame.reformat(format=pix_fmt, dst_color_range="JPEG")
                for packet in stream.encode(frame):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        return path

    return write


@pytest.fixture(scope="session")
def texture():
    """texture(seed, height, width): a smooth random picture, uint8 [height, width, 3]."""
    return make_texture


@pytest.fixture(scope="session")
def scene():
    """scene(motion, ...): an object in one of MOTIONS over a drifting background; (frames,
    masks)."""
    return make_scene


@pytest.fixture(scope="session")
def clip_of():
    """clip_of(frames uint8 [M, S, S, 3] or luma [M, S, S], patch, fields of SelectionConfig): a
    Clip without a file."""

    def build(frames, patch=14, spacing=0.1, **config):
        frames = np.asarray(frames)
        if frames.ndim == 4:
            yuv = np.stack(
                [np.asarray(Image.fromarray(f).convert("YCbCr")).transpose(2, 0, 1) for f in frames]
            )
        else:
            grey = np.full_like(frames, 128)
            yuv = np.stack([frames, grey, grey], axis=1)
        ids = np.arange(len(frames))
        size = yuv.shape[-1]
        return Clip(
            yuv,
            YuvCode(0.299, 0.114, True),
            Placement(size, size, size, size),
            ids,
            ids * spacing,
            np.full(len(ids) - 1, spacing),
            patch,
            SelectionConfig(**config),
        )

    return build


def make_texture(seed, height, width):
    rng = np.random.default_rng(seed)
    out = np.zeros((height, width, 3))
    for cell, strength in ((32, 60), (8, 40), (3, 25)):
        coarse = rng.uniform(-1, 1, (height // cell + 2, width // cell + 2, 3)) * 127 + 128
        image = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.BICUBIC)
        out += (np.asarray(image, float) - 128) / 127 * strength
    return np.clip(out + 128, 0, 255).astype(np.uint8)


def make_scene(motion, seed=0, size=112, frames=24, side=44, speed=1.6, drift=0.3):
    """An object moves, turns or changes size over a background with a slow drift.

    Returns:
      (uint8 [frames, size, size, 3], bool [frames, size, size]: where the object is).
    """
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(make_texture(int(rng.integers(1 << 30)), size + 32, size + 32))
    paint = make_texture(int(rng.integers(1 << 30)), side, side)
    # A rectangle with a bite: no symmetry under turns.
    outline = np.zeros((side, side), np.uint8)
    outline[side // 8 : -side // 8, side // 5 : -side // 5] = 255
    outline[: side // 3, : side // 2] = 0
    shape = Image.fromarray(np.dstack([paint // 2 + 120, outline]), "RGBA")
    way = rng.uniform(-1, 1, 2) * drift
    step = speed * rng.uniform(0.8, 1.2)
    turn, tilt = rng.uniform(100, 150), rng.uniform(-20, 20)
    pictures, masks = [], []
    for t in range(frames):
        u = t / (frames - 1) - 0.5
        x = y = size / 2
        angle, scale = tilt, 1.0
        if motion in ("left", "right"):
            x += step * (frames - 1) * u * (1 if motion == "right" else -1)
        elif motion in ("up", "down"):
            y += step * (frames - 1) * u * (1 if motion == "down" else -1)
        elif motion in ("cw", "ccw"):
            angle += turn * u * (1 if motion == "cw" else -1)
        else:
            scale = 1 + 0.9 * u * (1 if motion == "grow" else -1)
        c, s = np.cos(np.deg2rad(angle)) / scale, np.sin(np.deg2rad(angle)) / scale
        inverse = (c, s, side / 2 - c * x - s * y, -s, c, side / 2 + s * x - c * y)
        moved = shape.transform((size, size), Image.AFFINE, inverse, Image.BICUBIC)
        shift = (1, 0, 16 + way[0] * t, 0, 1, 16 + way[1] * t)
        picture = ground.transform((size, size), Image.AFFINE, shift, Image.BICUBIC)
        picture.paste(moved, (0, 0), moved)
        pictures.append(np.asarray(picture))
        masks.append(np.asarray(moved)[..., 3] > 127)
    return np.stack(pictures), np.stack(masks)
