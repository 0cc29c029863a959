"""Made clips, images and packs for the tests of the data part."""

from __future__ import annotations

import json
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from codecvit.codec.llava.cli import main
from codecvit.codec.llava.options import MosaicOptions

OPTIONS = MosaicOptions(num_frames=16, num_images=3, size=64)
ARGUMENTS = ["--num-frames", "16", "--num-images", "3", "--size", "64"]


def texture(seed, height, width):
    """A smooth random picture, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def moving(seed=0, frames=20, height=48, width=64):
    """A square moves over a picture; uint8 [frames, height, width, 3]."""
    ground, paint = texture(seed, height, width), texture(seed + 1, 16, 16)
    clip = np.repeat(ground[None], frames, axis=0)
    for number, frame in enumerate(clip):
        left = (number * 2) % (width - 16)
        frame[8:24, left : left + 16] = paint
    return clip


def write_video(path, frames, seconds=None):
    """A file that plays the frames, at 25 a second or at stated times (in whole 1/100 s)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if seconds is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 100)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if seconds is not None:
                frame.pts, frame.time_base = round(seconds[number] * 100), Fraction(1, 100)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_image(path, seed, height, width):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(texture(seed, height, width)).save(path)
    return path


def turns(*texts):
    """Questions and answers in turn."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def video_row(video, sample_id="v", text="<video>\nWhat moves?"):
    return {"id": sample_id, "video": video, "conversations": turns(text, "A square.")}


def pack_rows(folder, rows, *options, out="packed"):
    """Runs `llava data` on rows whose videos lie in `folder`; the folder of train.jsonl."""
    raw = folder / "raw.json"
    raw.write_text(json.dumps(rows))
    made = folder / out
    arguments = [
        "--input",
        raw,
        "--out-jsonl",
        made / "train.jsonl",
        "--out-images",
        made / "images",
    ]
    assert main(["data", *map(str, arguments), "--workers", "0", *ARGUMENTS, *options]) == 0
    return made


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
