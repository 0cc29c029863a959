"""Does the codec selection find what exhaustive motion search finds, and what is it worth?

    python benchmarks/codec_quality.py CLIP... [--pairs 24]

Truth: for every 16 x 16 block of the sampled frames (long side 576, whole patches, at most 36 x 36)
the vector within +-64 pixels of least SAD + rate, refined to quarter pixels on a bicubic picture.
From it and from each method scores are fused alike, and the 20 % highest patches compared: the
overlap is the share that both choose (0.20 by chance).

  default     the preset `default`: FFmpeg's block search, clip scale, similarity camera
  difference  the preset `fast`: plain difference of frames
  published   the scoring of the published tools: the file's own vectors (H.264), residual and
              motion alike, 95th percentile of each frame, median camera

`alike` compares with the truth fused as the method fuses, `default` with the truth fused by the
preset default. The proxies rebuild the clip from as many patches as 8 whole frames of 64: a patch
that was not chosen holds its last value (`hold`), or follows the true vectors (`follow`); dB PSNR
of the luma, mean of the frames. `random` chooses at random.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
from PIL import Image

from codecvit.codec.blocks import BLOCK, block_origins, blocks_at, blocks_of, difference
from codecvit.codec.clip import Clip, sample_clip
from codecvit.codec.config import PRESETS, SelectionConfig
from codecvit.codec.errors import MediaError
from codecvit.codec.motion import Motion
from codecvit.codec.saliency import saliency

RANGE = 64
TOP = 0.2
BUDGET = 8 / 64
METHODS = {
    "default": PRESETS["default"],
    "difference": PRESETS["fast"],
    "published": dataclasses.replace(PRESETS["published"], signal="bitstream"),
}


def exhaustive(planes: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Vectors in pixels, float64 [T, N, 2], to the frame before: whole search and refinement."""
    pairs = zip(planes, planes[1:], strict=False)
    return np.stack([_refine(a, b, _search(a, b, rows, columns)) for a, b in pairs])


def _search(before: np.ndarray, after: np.ndarray, rows: int, columns: int) -> np.ndarray:
    height, width = before.shape
    origins = block_origins(rows, columns)
    best = np.full(rows * columns, np.inf)
    found = np.zeros((rows * columns, 2), np.int64)
    padded = np.pad(before, RANGE)
    for dy in range(-RANGE, RANGE + 1):
        for dx in range(-RANGE, RANGE + 1):
            shifted = padded[RANGE + dy : RANGE + dy + height, RANGE + dx : RANGE + dx + width]
            error = difference(after, shifted).reshape(rows, BLOCK, width)
            by_row = np.add.reduce(error, axis=1, dtype=np.uint16)
            sad = by_row.reshape(-1, BLOCK).sum(axis=1, dtype=np.uint32)
            cost = sad + 8.0 * (np.log2(1 + abs(dx)) + np.log2(1 + abs(dy)))
            # The prediction has to lie in the picture, as the filter's has.
            x, y = origins[:, 0] + dx, origins[:, 1] + dy
            inside = (x >= 0) & (y >= 0) & (x <= width - BLOCK) & (y <= height - BLOCK)
            better = inside & (cost < best)
            best[better] = cost[better]
            found[better] = dx, dy
    return found


def _refine(before: np.ndarray, after: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The best of the 49 quarter-pixel vectors around each whole one."""
    rows, columns = before.shape[0] // BLOCK, before.shape[1] // BLOCK
    origins, blocks = block_origins(rows, columns), blocks_of(after)
    best, found = np.full(len(vectors), np.inf), vectors.astype(np.float64)
    for y in range(-3, 4):
        for x in range(-3, 4):
            step = np.array([x, y]) / 4
            predicted = predict(before, origins + vectors + step)
            sad = np.abs(predicted - blocks).sum(axis=1)
            better = sad < best
            best[better], found[better] = sad[better], (vectors + step)[better]
    return found


def predict(plane: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Blocks [N, 256] of a plane at corners (x, y) in quarter pixels, clipped to the picture."""
    height, width = plane.shape
    whole = np.floor(corners).astype(np.int64)
    out = np.empty((len(corners), BLOCK * BLOCK))
    quarters = np.rint((corners - whole) * 4).astype(np.int64)
    for qy in range(4):
        for qx in range(4):
            mine = (quarters == (qx, qy)).all(axis=1)
            if mine.any():
                moved = _shifted(plane, qx / 4, qy / 4)
                at = np.clip(whole[mine], 0, [width - BLOCK, height - BLOCK])
                out[mine] = blocks_at(moved, at)
    return out


def _shifted(plane: np.ndarray, x: float, y: float) -> np.ndarray:
    """The plane seen from (x, y), bicubic."""
    if x == 0 and y == 0:
        return plane
    image = Image.fromarray(plane)
    shift = (1, 0, x, 0, 1, y)
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, shift, Image.BICUBIC))


def true_motion(motion: Motion, planes: np.ndarray, vectors: np.ndarray) -> Motion:
    """The motion of a clip with other vectors, and the error that they leave."""
    origins = block_origins(motion.rows, motion.columns)
    errors = np.empty(motion.error_TNB.shape, np.uint8)
    for t, vectors_N2 in enumerate(vectors):
        left = np.abs(predict(planes[t], origins + vectors_N2) - blocks_of(planes[t + 1]))
        errors[t] = np.minimum(np.rint(left), 255)
    return dataclasses.replace(motion, vectors_TN2=vectors.astype(np.float32), error_TNB=errors)


def overlap(a_TN: np.ndarray, b_TN: np.ndarray) -> float:
    """Share of the top patches of a that are among the top patches of b."""
    count = round(TOP * a_TN.size)
    tops = [np.argsort(-s.ravel(), kind="stable")[:count] for s in (a_TN, b_TN)]
    return len(np.intersect1d(*tops)) / count


def rebuild(planes: np.ndarray, score_TN: np.ndarray, vectors: np.ndarray | None) -> float:
    """dB of the clip rebuilt from its best patches; the rest holds, or follows the vectors."""
    frames, blocks = len(planes), score_TN.shape[1]
    count = max(0, round(BUDGET * frames * blocks) - blocks)
    chosen = np.zeros(score_TN.size, bool)
    chosen[np.argsort(-score_TN.ravel(), kind="stable")[:count]] = True
    chosen = chosen.reshape(score_TN.shape)
    rows, columns = planes.shape[1] // BLOCK, planes.shape[2] // BLOCK
    origins, last, decibels = block_origins(rows, columns), planes[0], []
    for t in range(frames - 1):
        truth = blocks_of(planes[t + 1])
        moved = 0 if vectors is None else vectors[t]
        guess = np.clip(np.rint(predict(last, origins + moved)), 0, 255)
        built = np.where(chosen[t][:, None], truth, guess).astype(np.uint8)
        error = np.mean((built.astype(float) - truth) ** 2)
        decibels.append(10 * np.log10(255**2 / max(error, 1e-3)))
        cut = built.reshape(rows, columns, BLOCK, BLOCK).swapaxes(1, 2)
        last = np.ascontiguousarray(cut.reshape(planes.shape[1:]))
    return float(np.mean(decibels))


def shorten(clip: Clip, frames: int) -> Clip:
    """The first samples of a clip, scored on their own."""
    part = {"yuv_M3HW": clip.yuv_M3HW[:frames], "gaps_T": clip.gaps_T[: frames - 1]}
    for name in ("frame_ids_M", "seconds_M"):
        part[name] = getattr(clip, name)[:frames]
    if clip.coded_vectors_TN2 is not None:
        part["coded_vectors_TN2"] = clip.coded_vectors_TN2[: frames - 1]
    return dataclasses.replace(clip, **part)


def measure(path: Path, pairs: int) -> dict[str, dict[str, float]]:
    """Per method the two overlaps and the two proxies."""

    def fused(motion: Motion, config: SelectionConfig) -> np.ndarray:
        return saliency(motion, config)[1:]

    def decoded(config: SelectionConfig) -> Clip:
        clip = sample_clip(path, 64, 576, 16, geometry="fit", config=config)
        return shorten(clip, pairs + 1)

    planes = decoded(PRESETS["default"]).luma_MHW
    motions = {}
    for name, config in METHODS.items():
        try:
            motions[name] = decoded(config).motion
        except MediaError as error:
            print(f"# {error}")
    base = motions["default"]
    vectors = exhaustive(planes, base.rows, base.columns)
    truth = true_motion(base, planes, vectors)
    default = fused(truth, PRESETS["default"])
    results = {}
    for name, motion in motions.items():
        score = fused(motion, METHODS[name])
        results[name] = {
            "alike": overlap(score, fused(truth, METHODS[name])),
            "default": overlap(score, default),
        }
        results[name] |= _proxies(planes, score, vectors)
    noise = np.random.default_rng(0).random(default.shape)
    results["random"] = {"alike": TOP, "default": overlap(noise, default)}
    results["random"] |= _proxies(planes, noise, vectors)
    results["truth"] = {"alike": 1.0, "default": 1.0} | _proxies(planes, default, vectors)
    return results


def _proxies(planes: np.ndarray, score: np.ndarray, vectors: np.ndarray) -> dict[str, float]:
    return {"hold": rebuild(planes, score, None), "follow": rebuild(planes, score, vectors)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--pairs", type=int, default=24, help="pairs of samples of each clip")
    args = parser.parse_args()
    columns = ("alike", "default", "hold", "follow")
    print(f"{'clip':34} {'method':10}", *(f"{c:>8}" for c in columns))
    table: dict[str, list[list[float]]] = {}
    for path in args.clips:
        started = time.monotonic()
        for method, row in measure(path, args.pairs).items():
            values = [row[c] for c in columns]
            table.setdefault(method, []).append(values)
            print(f"{path.name[:34]:34} {method:10}", *(f"{v:8.2f}" for v in values), flush=True)
        print(f"# {time.monotonic() - started:.0f} s", flush=True)
    for method, values in table.items():
        mean = np.mean(values, axis=0)
        print(f"{f'mean of {len(values)}':34} {method:10}", *(f"{v:8.2f}" for v in mean))


if __name__ == "__main__":
    main()
