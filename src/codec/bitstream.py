"""The motion vectors that a file carries, summed up from one sample to the next.

FFmpeg hands them out for H.264 and MPEG-4 only. A vector tells neither which frame it refers to nor
how far away that is. In H.264 a P frame is taken to refer to the I or P frame before it, a B frame
to its neighbours, and vectors are divided by that distance. B frames of MPEG-4 mostly state
corrections to vectors that others have, so only its P frames count, whole. Blocks without a vector
(intra) stand still.

Shape suffixes: H4 and W4 the frame in cells of 4 x 4 pixels, N blocks of the motion plane, T pairs
of samples, 2 = (x, y).
"""

from __future__ import annotations

import numpy as np
from av.codec.context import Flags2
from av.sidedata.sidedata import Type
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from .blocks import BLOCK, picture_blocks
from .view import ViewScaler

CODED_SIGNALS = ("h264", "mpeg4")
"""FFmpeg's names of the codecs whose decoders export motion vectors."""

_CELL = 4  # no block of these codecs is smaller
_POINTS = (0.25, 0.75)  # where a patch is looked up along each axis


class CodedMotion:
    """Collects motion while a file is decoded in order; `vectors` gives the sums.

    Args (of the constructor):
      stream: the stream, before its first packet is decoded.
      scaler: turns its frames into views; knows the placement once it has seen the first sample.
      ids_M: the samples.
    """

    def __init__(self, stream: VideoStream, scaler: ViewScaler, ids_M: np.ndarray) -> None:
        stream.codec_context.flags2 |= Flags2.export_mvs
        self._reads_b_frames = stream.codec_context.name != "mpeg4"
        self._scaler = scaler
        self._ids_M = ids_M
        self._since_anchor = 0
        self._sum_N2: np.ndarray | None = None
        self._sums: list[np.ndarray] = []

    def add(self, index: int, frame: VideoFrame) -> None:
        """Takes every frame in display order, the samples after `scaler` has seen them."""
        self._since_anchor += 1
        distance = 1
        anchor = frame.pict_type != PictureType.B
        if anchor:
            distance, self._since_anchor = self._since_anchor, 0
        if len(self._ids_M) == 0 or not self._ids_M[0] <= index <= self._ids_M[-1]:
            return
        if index == self._ids_M[0]:
            self._sum_N2 = np.zeros((self._blocks, 2))
            return
        if self._reads_b_frames:
            self._sum_N2 = self._sum_N2 + self._frame_vectors(frame) / distance
        elif anchor:
            self._sum_N2 = self._sum_N2 + self._frame_vectors(frame)
        if index == self._ids_M[len(self._sums) + 1]:
            self._sums.append(self._sum_N2.astype(np.float32))
            self._sum_N2 = np.zeros((self._blocks, 2))

    def vectors(self) -> np.ndarray:
        """float32 [T, N, 2], pixels of the motion plane, from each sample to the one before."""
        return np.stack(self._sums) if self._sums else np.zeros((0, self._blocks, 2), np.float32)

    @property
    def _blocks(self) -> int:
        rows, columns = picture_blocks(self._scaler.placement, self._scaler.view.patch)
        return len(rows) * len(columns)

    def _frame_vectors(self, frame: VideoFrame) -> np.ndarray:
        """One frame's own vectors at the blocks of the motion plane, float64 [N, 2]."""
        placement, patch = self._scaler.placement, self._scaler.view.patch
        field, known = _paint(frame)
        turns = frame.rotation // 90 % 4
        field, known = np.rot90(field, turns), np.rot90(known, turns)
        for _ in range(turns):  # anticlockwise: what pointed right points up
            field = np.stack([field[..., 1], -field[..., 0]], axis=-1)
        height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        to_source = np.array([width / placement.scaled_width, height / placement.scaled_height])
        rows, columns = picture_blocks(placement, patch)
        y_cut, x_cut = placement.cut
        shares = np.array(_POINTS)
        y = ((rows[:, None] + shares).ravel() * patch - placement.top + y_cut) * to_source[1]
        x = ((columns[:, None] + shares).ravel() * patch - placement.left + x_cut) * to_source[0]
        y = np.clip(y / _CELL, 0, len(field) - 1).astype(np.int64)
        x = np.clip(x / _CELL, 0, field.shape[1] - 1).astype(np.int64)
        points = len(_POINTS)
        shape = (len(rows), points, len(columns), points)
        weight = known[y[:, None], x].reshape(shape).sum(axis=(1, 3))
        total = field[y[:, None], x].reshape(*shape, 2).sum(axis=(1, 3))
        mean = total / np.maximum(weight, 1)[..., None]
        return mean.reshape(-1, 2) / to_source * (BLOCK / patch)


def _paint(frame: VideoFrame) -> tuple[np.ndarray, np.ndarray]:
    """(vectors float32 [H4, W4, 2] in pixels of the frame, whether there is one bool [H4, W4])."""
    height, width = -(-frame.height // _CELL), -(-frame.width // _CELL)
    field = np.zeros((height, width, 2), np.float32)
    known = np.zeros((height, width), bool)
    data = frame.side_data.get(Type.MOTION_VECTORS)
    if data is None:
        return field, known
    records = data.to_ndarray()
    scale = np.maximum(records["motion_scale"], 1)
    vectors = np.stack([records["motion_x"] / scale, records["motion_y"] / scale], axis=1)
    # A reference in the future is the past mirrored; blocks with both are painted over by the past.
    vectors[records["source"] > 0] *= -1
    for future in (True, False):
        side = (records["source"] > 0) == future
        for w, h in np.unique(np.stack([records["w"][side], records["h"][side]], axis=1), axis=0):
            some = side & (records["w"] == w) & (records["h"] == h)
            top = (records["dst_y"][some].astype(np.int64) - h // 2) // _CELL
            left = (records["dst_x"][some].astype(np.int64) - w // 2) // _CELL
            y = top[:, None, None] + np.arange(max(1, h // _CELL))[:, None]
            x = left[:, None, None] + np.arange(max(1, w // _CELL))
            y, x = np.broadcast_arrays(y, x)
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            owner = np.broadcast_to(vectors[some][:, None, None], (*y.shape, 2))
            field[y[inside], x[inside]] = owner[inside]
            known[y[inside], x[inside]] = True
    return field, known
