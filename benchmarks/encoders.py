"""Several encoders on one video: features a second for 1, 2, 4 of them; decoding once or for each.

    python benchmarks/encoders.py                                # small, a minute on a CPU
    python benchmarks/encoders.py --width 768 --layers 12 --size 224 --device cuda --dtype bfloat16

The encoders are MERV's, freshly drawn at one size: DINOv2 with registers, SigLIP,
LanguageBind-Video and ViViT, each with the number of frames that MERV gives it (16, 16, 16, 32).
The video is made, unless --video names one. All measurements take turns, --repeats times after one
round to warm up; the tables have medians, and ratios within a round. Projectors and fusion are not
measured; fused tokens are MERV's 1,024 a video, whatever the number of encoders.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

FRAMES = {"dinov2": 16, "siglip": 16, "languagebind_video": 16, "vivit": 32}
FUSED = 1024
TYPES = {
    "dinov2": "dinov2_with_registers",
    "siglip": "siglip_vision_model",
    "languagebind_video": "languagebind_video_vision",
    "vivit": "vivit",
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", help="a video file; default: a made one, 640 x 360, 10 s")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--size", type=int, default=112, help="side of frames in pixels")
    parser.add_argument("--videos", type=int, default=1, help="encoded together")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    towers = {kind: tower(kind, args) for kind in FRAMES}
    sets = [list(FRAMES)[:count] for count in (1, 2, 4)]
    with tempfile.TemporaryDirectory() as folder:
        video = args.video or make_video(Path(folder) / "made.mp4")
        shared = decode(video, max(FRAMES.values()), args.size)
        pixels = torch.from_numpy(shared.pixels)[None].expand(args.videos, -1, -1, -1, -1)
        pixels = pixels.to(args.device)
        rounds = []
        for _ in range(args.repeats + 1):
            found = {}
            for kinds in sets:
                found["encode", len(kinds)] = timed(
                    lambda kinds=kinds: encode(towers, kinds, pixels, args), args.device
                )
                found["once", len(kinds)] = timed(
                    lambda kinds=kinds: decode(video, max(FRAMES[k] for k in kinds), args.size)
                )
                found["each", len(kinds)] = timed(
                    lambda kinds=kinds: [decode(video, FRAMES[k], args.size) for k in kinds]
                )
            rounds.append(found)
        tokens = {len(kinds): encode(towers, kinds, pixels, args) for kinds in sets}
    report(rounds[1:], tokens, args.videos)


def tower(kind, args):
    """A freshly drawn encoder with its entry, as `encode_frames` takes them."""
    from codecvit.llava.encoders.encode import FrameInput
    from codecvit.llava.encoders.registry import build_tower, config_of, spec_of

    fields = {
        "model_type": TYPES[kind],
        "hidden_size": args.width,
        "intermediate_size": 4 * args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": max(1, args.width // 64),
        "image_size": args.size,
    }
    if kind == "vivit":
        fields |= {"tubelet_size": [2, 16, 16], "num_frames": 32}
    else:
        fields |= {"patch_size": 16 if kind == "siglip" else 14}
    if kind == "languagebind_video":
        fields["num_frames"] = 8
    spec, config = spec_of(kind), config_of(kind, fields)
    model = build_tower(kind, config, dtype=getattr(torch, args.dtype)).to(args.device).eval()
    entry = FrameInput(FRAMES[kind], args.size, spec.image_mean, spec.image_std, spec.select_layer)
    return spec, model, entry


@torch.inference_mode()
def encode(towers, kinds, pixels, args):
    """Features of all videos by these encoders; how many of one video."""
    from codecvit.llava.encoders.encode import encode_frames

    shared = max(FRAMES[kind] for kind in kinds)
    pixels = pixels[:, :: pixels.shape[1] // shared]
    found = [
        encode_frames(spec, tower, pixels, entry) for spec, tower, entry in map(towers.get, kinds)
    ]
    return sum(x[0].shape[0] * x[0].shape[1] for x in found)


def decode(video, frames, size):
    from codecvit.llava.encoders.frames import shared_frames

    return shared_frames(video, frames, size)


def timed(act, device="cpu"):
    """(wall, processor) seconds of a call."""
    start = time.perf_counter(), time.process_time()
    act()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def make_video(path, frames=250, height=360, width=640):
    """A patch moves over a picture that drifts: 10 s at 25 frames a second, H.264."""
    import av
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8, width // 8 + 40, 3), np.uint8)
    ground = np.asarray(Image.fromarray(coarse).resize((width + 320, height), 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            picture = ground[:, number : number + width].copy()
            left = number * 7 % (width - 80)
            picture[140:220, left : left + 80] = 255 - picture[140:220, left : left + 80]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def report(rounds, tokens, videos):
    def middle(values):
        return statistics.median(values)

    print(
        "| encoders | features of a video | encode, s | features/s | fused tokens/s | ratio to 1 |"
    )
    print("|---|---|---|---|---|---|")
    for count, made in tokens.items():
        walls = [found["encode", count][0] for found in rounds]
        ratio = middle([found["encode", count][1] / found["encode", 1][1] for found in rounds])
        seconds = middle(walls) / videos
        rates = f"{made / seconds:,.0f} | {FUSED / seconds:,.0f}"
        print(f"| {count} | {made:,} | {seconds:.3f} | {rates} | {ratio:.2f} |")
    print()
    print("| encoders | decode once, s | decode for each, s | ratio | share of once in all |")
    print("|---|---|---|---|---|")
    for count in tokens:
        once = middle([found["once", count][0] for found in rounds])
        each = middle([found["each", count][0] for found in rounds])
        ratio = middle([found["each", count][1] / found["once", count][1] for found in rounds])
        share = middle(
            [
                found["once", count][1]
                / (found["once", count][1] + found["encode", count][1] / videos)
                for found in rounds
            ]
        )
        print(f"| {count} | {once:.3f} | {each:.3f} | {ratio:.2f} | {share:.0%} |")
    print("Ratios and shares are of processor time.")


if __name__ == "__main__":
    main()
