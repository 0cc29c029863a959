"""Damages small video files in seeded ways and packs them; run as a process of its own, which a
crash of native code or a hang may end.

    python tests/codec/mutate.py FOLDER FIRST COUNT

Prints the number of each damaged file before it is opened, and its outcome after.
"""

from __future__ import annotations

import faulthandler
import resource
import sys
from pathlib import Path

import av
import numpy as np

from codecvit.codec import MediaError, SelectionConfig, pack_video

HANG_SECONDS = 20
MEMORY = 3 << 30  # bytes of address space: an absurd header must not be believed

KINDS = {
    "a.mp4": ("mpeg4", "yuv420p", 2),
    "b.mkv": ("libx264", "yuv420p", 3),
    "c.avi": ("mpeg4", "yuv420p", 0),
    "d.mov": ("mjpeg", "yuvj422p", 0),
    "e.webm": ("libvpx-vp9", "yuv420p", 0),
    "f.ts": ("mpeg2video", "yuv420p", 2),
    "g.gif": ("gif", "rgb8", 0),
    "h.mp4": ("libx264", "yuv422p10le", 2),
    "i.mkv": ("ffv1", "gray", 0),
}


def write_corpus(folder: Path) -> list[Path]:
    """A few frames in each container and codec that this FFmpeg can write."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (6, 8, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    paths = []
    for name, (codec, pix_fmt, b_frames) in KINDS.items():
        if codec not in av.codecs_available:
            continue
        path = folder / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=10, options={"bf": str(b_frames)})
            stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
            stream.codec_context.gop_size = 5
            for i in range(12):
                frame = np.roll(ground, 3 * i, axis=1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        paths.append(path)
    return paths


def mutate(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One to three damages: cuts, wrong bytes, zeros, moved pieces, wild headers, splices."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        size = max(len(out), 1)
        start, length = int(rng.integers(size)), int(rng.integers(1, 2 + size // 4))
        match rng.integers(7):
            case 0:
                del out[start:]
            case 1:
                for place in rng.integers(0, size, rng.integers(1, 30)):
                    out[place : place + 1] = bytes([rng.integers(256)])
            case 2:
                out[start : start + length] = bytes(len(out[start : start + length]))
            case 3:
                del out[start : start + length]
            case 4:
                out[start:start] = out[start : start + length]
            case 5:  # headers lie in the first or in the last part of a file
                place = int(rng.integers(min(size, 600)))
                place = place if rng.random() < 0.5 else max(0, size - place)
                out[place : place + 4] = rng.choice(
                    [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\xff\xff"]
                )
            case 6:
                out[start:] = other[int(rng.integers(max(len(other), 1))) :]
    return bytes(out)


def outcome(path: Path, rng: np.random.Generator) -> str:
    """Packs a file one way or another; any error but MediaError passes through."""
    signal = rng.choice(["estimate", "bitstream", "difference"], p=[0.6, 0.2, 0.2])
    geometry = rng.choice(["crop", "fit", "square"])
    config = SelectionConfig(signal=str(signal))
    try:
        sequence = pack_video(path, "codec", 8, 40, 56, 14, config=config, geometry=str(geometry))
    except MediaError as error:
        assert str(path) in str(error), f"the file is not named: {error}"
        return f"refused: {error.reason}"
    return f"{len(sequence)} patches"


def main() -> None:
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    originals = [path.read_bytes() for path in write_corpus(folder)]
    names = [path.name for path in sorted(folder.iterdir())]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    open_before = _open_files()
    for number in range(first, first + count):
        rng = np.random.default_rng([7, number])
        kind, other = rng.integers(len(originals), size=2)
        path = folder / f"{number}-{names[kind]}"
        path.write_bytes(mutate(originals[kind], originals[other], rng))
        print(f"{path.name}: ", end="", flush=True)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        print(outcome(path, rng), flush=True)
        faulthandler.cancel_dump_traceback_later()
        path.unlink()
    assert _open_files() <= open_before, "files are left open"


def _open_files() -> int:
    handles = Path("/proc/self/fd")
    return len(list(handles.iterdir())) if handles.is_dir() else 0


if __name__ == "__main__":
    main()
