"""FFmpeg's own block search, as a filter over the luma of frames.

Every codec that FFmpeg decodes is treated alike: the `mestimate` filter (EPZS, integer pixels) runs
on decoded samples. No encoder and no GPL part.

Shape suffixes: M frames, H and W in pixels, G and K height and width of the motion plane in pixels,
N blocks of a frame, 2 = (x, y) in pixels of the motion plane.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.filter import Graph
from av.filter.context import FilterContext
from av.sidedata.sidedata import Type

from .blocks import BLOCK, block_origins

SEARCH = 64
"""Largest component of a vector, in pixels of the motion plane; a wider search costs the same."""


def search_vectors(luma_MHW: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Motion from each frame to the one before it.

    Args:
      luma_MHW: uint8.
      rows, columns: blocks of the motion plane, of 16 * rows x 16 * columns pixels.

    Returns:
      (planes uint8 [M, G, K], vectors int64 [M - 1, N, 2]: where a block of the later frame is
      found in the earlier one, minus its own place). The source of a block never leaves the frame.
    """
    graph = _Graph(luma_MHW.shape[1:], rows, columns, search=True)
    frames = len(luma_MHW)
    planes_MGK = np.empty((frames, rows * BLOCK, columns * BLOCK), np.uint8)
    vectors_MN2 = np.empty((frames, rows * columns, 2), np.int64)
    centres_N2 = block_origins(rows, columns) + BLOCK // 2
    # The filter holds one frame back: the last one is pushed twice to get it out.
    outputs = graph.run([*luma_MHW, luma_MHW[-1]])
    for t in range(frames):
        out = next(outputs)
        planes_MGK[t] = _pixels(out)
        vectors_MN2[t] = _backward_vectors(out, centres_N2)
    return planes_MGK, vectors_MN2[1:]


def scale_planes(luma_MHW: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The motion planes alone, uint8 [M, G, K]: the same pixels as `search_vectors` gives."""
    if luma_MHW.shape[1:] == (rows * BLOCK, columns * BLOCK):
        return luma_MHW
    graph = _Graph(luma_MHW.shape[1:], rows, columns, search=False)
    return np.stack([_pixels(out) for out in graph.run(luma_MHW)])


class _Graph:
    """buffer -> scale -> mestimate -> buffersink. Keep it: its filters do not keep it alive."""

    def __init__(self, shape: tuple[int, int], rows: int, columns: int, search: bool) -> None:
        self._graph = Graph()
        height, width = shape
        size = f"video_size={width}x{height}:pix_fmt=gray:time_base=1/1:pixel_aspect=1/1"
        filters = [self._graph.add("buffer", size)]
        scale = f"{columns * BLOCK}:{rows * BLOCK}:flags=bilinear"
        filters.append(self._graph.add("scale", scale))
        if search:
            settings = f"method=epzs:mb_size={BLOCK}:search_param={SEARCH}"
            filters.append(self._graph.add("mestimate", settings))
        filters.append(self._graph.add("buffersink"))
        for first, second in zip(filters, filters[1:], strict=False):
            first.link_to(second)
        self._graph.configure()
        self._source: FilterContext = filters[0]
        self._sink: FilterContext = filters[-1]

    def run(self, frames: Iterable[np.ndarray]) -> Iterator[av.VideoFrame]:
        """Yields what comes out while luma planes [H, W] go in."""
        for pts, luma_HW in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(luma_HW), format="gray")
            frame.pts = pts
            self._source.push(frame)
            while True:
                try:
                    out = self._sink.pull()
                except av.BlockingIOError:
                    break
                yield out


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: frame.height, : frame.width]


def _backward_vectors(frame: av.VideoFrame, centres_N2: np.ndarray) -> np.ndarray:
    """Vectors to the frame before; mestimate leaves motion_x, motion_y and motion_scale unset."""
    data = frame.side_data.get(Type.MOTION_VECTORS)
    records = data.to_ndarray()[: len(centres_N2)]
    to_N2 = np.stack([records["dst_x"], records["dst_y"]], axis=1)
    assert (records["source"] == -1).all() and np.array_equal(to_N2, centres_N2), (
        "mestimate no longer lists the backward vectors first, row by row"
    )
    return np.stack([records["src_x"], records["src_y"]], axis=1) - to_N2.astype(np.int64)
