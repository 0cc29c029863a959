"""Motion between consecutive sampled frames and what it fails to predict.

Every codec that FFmpeg decodes is treated alike: FFmpeg's `mestimate` filter (EPZS block search,
integer pixels) runs on the luma of the sampled frames, scaled so that one 16-pixel block of the
motion plane is one patch. No encoder and no GPL part.

Shape suffixes: M sampled frames, T = M - 1 pairs of frames, S side of the view, G side of the
motion plane (both pixels), N blocks of a frame in row-major order, 2 = (x, y) in pixels of the
motion plane, B = 256 pixels of a block.
"""

from __future__ import annotations

import dataclasses

import av
import numpy as np
from av.filter import Graph
from av.filter.context import FilterContext
from av.sidedata.sidedata import Type

BLOCK = 16
"""Side of a motion block in pixels of the motion plane; mestimate takes powers of two from 8 on."""

SEARCH = 64
"""Largest component of a vector, in pixels of the motion plane; a wider search costs the same."""


@dataclasses.dataclass(frozen=True, eq=False)
class Motion:
    """Block motion of a clip; pair t predicts sampled frame t + 1 from frame t.

    Attributes:
      vectors_TN2: float32, where a block of the later frame is found in the earlier one, minus its
        own place. What moves right has negative x.
      error_TNB: uint8, |luma - prediction| of each pixel.
      texture_TN: float32, standard deviation of the block's luma: vectors of flat blocks mean
        nothing.
    """

    vectors_TN2: np.ndarray
    error_TNB: np.ndarray
    texture_TN: np.ndarray


def estimate_motion(luma_MSS: np.ndarray, grid: int) -> Motion:
    """Motion, prediction error and texture of every patch after the first frame.

    Args:
      luma_MSS: uint8, the sampled frames.
      grid: patches along one side, so that a frame has N = grid * grid blocks.

    Returns:
      The motion; without pairs for a single frame.
    """
    planes_MGG, vectors_TN2 = search_vectors(luma_MSS, grid)
    sources_TN2 = block_origins(grid) + vectors_TN2
    pairs, blocks = vectors_TN2.shape[:2]
    error_TNB = np.empty((pairs, blocks, BLOCK * BLOCK), np.uint8)
    texture_TN = np.empty((pairs, blocks), np.float32)
    for t in range(pairs):
        current_NB = blocks_of(planes_MGG[t + 1])
        error_TNB[t] = difference(current_NB, blocks_at(planes_MGG[t], sources_TN2[t]))
        texture_TN[t] = texture(current_NB)
    return Motion(vectors_TN2.astype(np.float32), error_TNB, texture_TN)


def search_vectors(luma_MSS: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs FFmpeg's block search over consecutive frames.

    Args:
      luma_MSS: uint8.
      grid: blocks along one side; the motion plane has G = 16 * grid pixels a side.

    Returns:
      (planes uint8 [M, G, G], vectors int64 [M - 1, N, 2]); the source of a block never leaves the
      frame.
    """
    frames, side = len(luma_MSS), grid * BLOCK
    planes_MGG = np.empty((frames, side, side), np.uint8)
    vectors_MN2 = np.empty((frames, grid * grid, 2), np.int64)
    centres_N2 = block_origins(grid) + BLOCK // 2
    graph, source, sink = _search_graph(luma_MSS.shape[1], side)
    done = 0
    # The filter holds one frame back: the last one is pushed twice to get it out.
    for pts, t in enumerate([*range(frames), frames - 1]):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(luma_MSS[t]), format="gray")
        frame.pts = pts
        source.push(frame)
        while done < frames:
            try:
                out = sink.pull()
            except av.BlockingIOError:
                break
            plane = out.planes[0]
            planes_MGG[done] = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[
                :side, :side
            ]
            vectors_MN2[done] = _backward_vectors(out, centres_N2)
            done += 1
    assert done == frames, f"mestimate gave {done} of {frames} frames"
    return planes_MGG, vectors_MN2[1:]


def block_origins(grid: int) -> np.ndarray:
    """Top left corners of the blocks, int64 [N, 2] as (x, y), row-major."""
    y, x = np.divmod(np.arange(grid * grid), grid)
    return np.stack([x, y], axis=1) * BLOCK


def blocks_of(plane_GG: np.ndarray) -> np.ndarray:
    """Cuts a plane into blocks, [N, B] in row-major order."""
    grid = len(plane_GG) // BLOCK
    cut = plane_GG.reshape(grid, BLOCK, grid, BLOCK).swapaxes(1, 2)
    return cut.reshape(grid * grid, BLOCK * BLOCK)


def blocks_at(plane_GG: np.ndarray, corners_N2: np.ndarray) -> np.ndarray:
    """Blocks with the given top left corners, [N, B]; each must lie inside the plane."""
    windows = np.lib.stride_tricks.sliding_window_view(plane_GG, (BLOCK, BLOCK))
    return windows[corners_N2[:, 1], corners_N2[:, 0]].reshape(len(corners_N2), -1)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| of uint8 arrays without leaving uint8: max - min cannot wrap."""
    return np.maximum(a, b) - np.minimum(a, b)


def texture(pixels_NB: np.ndarray) -> np.ndarray:
    """Standard deviation of each block, float32 [N]."""
    values = pixels_NB.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    return np.sqrt(np.einsum("nb,nb->n", values, values) / values.shape[1])


def _search_graph(size: int, side: int) -> tuple[Graph, FilterContext, FilterContext]:
    """(graph, source, sink). Keep the graph: its filters do not keep it alive."""
    graph = Graph()
    shape = f"video_size={size}x{size}:pix_fmt=gray:time_base=1/1:pixel_aspect=1/1"
    source = graph.add("buffer", shape)
    scale = graph.add("scale", f"{side}:{side}:flags=bilinear")
    search = graph.add("mestimate", f"method=epzs:mb_size={BLOCK}:search_param={SEARCH}")
    sink = graph.add("buffersink")
    for first, second in ((source, scale), (scale, search), (search, sink)):
        first.link_to(second)
    graph.configure()
    return graph, source, sink


def _backward_vectors(frame: av.VideoFrame, centres_N2: np.ndarray) -> np.ndarray:
    """Vectors to the frame before; mestimate leaves motion_x, motion_y and motion_scale unset."""
    data = frame.side_data.get(Type.MOTION_VECTORS)
    records = data.to_ndarray()[: len(centres_N2)]
    to_N2 = np.stack([records["dst_x"], records["dst_y"]], axis=1)
    assert (records["source"] == -1).all() and np.array_equal(to_N2, centres_N2), (
        "mestimate no longer lists the backward vectors first, row by row"
    )
    return np.stack([records["src_x"], records["src_y"]], axis=1) - to_N2.astype(np.int64)
