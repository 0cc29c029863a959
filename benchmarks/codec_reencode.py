"""Does the choice of patches depend on how a clip was encoded?

    python benchmarks/codec_reencode.py CLIP...

Each clip is encoded anew by several encoders and settings, at a quality at which one hardly sees a
difference, and packed: 64 frames, 224 pixels, patch 14, 2,048 patches. Printed is the share of the
patches after the first frame that the choice on the new file has in common with the choice on the
original: by the default signal, which looks at decoded frames, and by `bitstream`, which reads the
file's own vectors (H.264 and MPEG-4 only). `chance` is what random choices have in common.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import av
import numpy as np

from codecvit.codec.clip import sample_clip
from codecvit.codec.config import PRESETS, SelectionConfig
from codecvit.codec.errors import MediaError
from codecvit.codec.selection import choose

BUDGET = 2048
SIGNALS = {"estimate": PRESETS["default"], "bitstream": SelectionConfig(signal="bitstream")}
VERSIONS = {
    "H.264, no B frames, GOP 12": ("libx264", {"crf": "18", "bf": "0", "g": "12"}),
    "H.264, 3 B frames, GOP 250": ("libx264", {"crf": "18", "bf": "3", "g": "250"}),
    "H.264, ultrafast, GOP 60": ("libx264", {"crf": "18", "preset": "ultrafast", "g": "60"}),
    "HEVC, GOP 250": ("libx265", {"crf": "20", "x265-params": "log-level=none:keyint=250"}),
    "VP9, GOP 128": ("libvpx-vp9", {"crf": "24", "b:v": "0", "g": "128", "cpu-used": "5"}),
    "MPEG-4, GOP 12": ("mpeg4", {"qmin": "2", "qmax": "3", "g": "12"}),
}


def encode_again(path: Path, out: Path, codec: str, options: dict[str, str]) -> None:
    """Decodes and encodes every frame, with its time."""
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        given = source.streams.video[0]
        stream = target.add_stream(codec, rate=given.average_rate, options=options)
        stream.width, stream.height, stream.pix_fmt = given.width, given.height, "yuv420p"
        for number, frame in enumerate(source.decode(given)):
            picture = frame.reformat(format="yuv420p")
            picture.pts, picture.time_base = number, 1 / given.average_rate
            target.mux(stream.encode(picture))
        target.mux(stream.encode())


def chosen(path: Path, config: SelectionConfig) -> set[tuple[int, int, int]]:
    """The patches after the first frame."""
    selection = choose(sample_clip(path, config=config), BUDGET)
    return {tuple(row) for row in selection.thw_L3.tolist() if row[0] > 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    args = parser.parse_args()
    print(f"{'clip':32} {'encoded as':28}", *(f"{name:>10}" for name in SIGNALS))
    columns: dict[str, list[float]] = {name: [] for name in SIGNALS}
    with tempfile.TemporaryDirectory() as folder:
        for path in args.clips:
            originals = {name: chosen(path, config) for name, config in SIGNALS.items()}
            for label, (codec, options) in VERSIONS.items():
                out = Path(folder) / f"{path.stem}-{codec}.mkv"
                encode_again(path, out, codec, options)
                cells = []
                for name, config in SIGNALS.items():
                    try:
                        mine = chosen(out, config)
                    except MediaError:  # no vectors in this codec
                        cells.append(f"{'-':>10}")
                        continue
                    share = len(mine & originals[name]) / len(originals[name])
                    columns[name].append(share)
                    cells.append(f"{share:10.2f}")
                print(f"{path.name[:32]:32} {label:28}", *cells, flush=True)
    means = (f"{np.mean(values):10.2f}" for values in columns.values())
    print(f"{'mean':61}", *means)
    print(f"{'chance':61} {(BUDGET - 256) / (63 * 256):10.2f}")


if __name__ == "__main__":
    main()
