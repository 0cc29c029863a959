"""A training-free feature of a clip or image, for the first round of clustering.

It is a concatenation of parts, each of unit norm times a weight, so that distances between clips
carry colours, edges and motion in known proportions. Its length does not depend on the clip.

  colour   (mean - 1/2, deviation) x 3 views x 4 x 4 cells x R, G, B
  edges    3 views x 4 x 4 cells x 8 directions of the luma gradient
  heading  4 spans x 8 directions of the residual motion: right, ..., down, ..., left, ..., up, ...
  turning  4 spans x 8 directions of the residual motion as seen from the centre of what moves:
           outward, ..., clockwise, ..., inward, ..., anticlockwise, ...
  speed    6 lengths of the residual motion
  place    4 x 4 cells of the frame with residual motion
  shape    6 x 6 cells x 8 directions of the luma gradient in a window around what moves, summed
           over the later frames of the pairs (oriented gradients, Dalal and Triggs 2005)

The views are the first, middle and last frame; the spans are the whole clip and its thirds.
A shift fills one heading and every turning, a rotation or a change of size the reverse. The parts
of motion are zero for an image and for a clip of one frame.

Residual motion is what the camera does not explain, between 8 pairs of frames about a quarter of a
second apart: vectors are whole pixels, so slow motion between adjacent samples would round to none.
A block counts by how much better its own vector predicts it than the camera's does: noise on flat
ground then counts nothing. Histograms enter as square roots (Hellinger distance), so that a strong
bin does not drown the rest.

Shape suffixes: V views (frames that colour and edges look at), S side of a view, T pairs of frames,
N blocks of a frame, 2 = (x, y) in pixels of the motion plane, y down.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from .block_search import search_vectors
from .blocks import BLOCK, block_origins, blocks_at, blocks_of, difference, texture
from .camera import camera_motion
from .clip import Clip

WEIGHTS = {
    "colour": 0.5,
    "edges": 0.5,
    "heading": 1.0,
    "turning": 1.0,
    "speed": 0.3,
    "place": 0.3,
    "shape": 0.7,
}
"""Norm of each part, in the order of the parts."""

_VIEWS = 3
_SIDE = 64  # views are scaled to this: the feature must not depend on the size of the patches
_CELLS = 4
_DIRECTIONS = 8
_PAIRS = 8
_GAP = 0.25  # seconds
_GRID = 16  # blocks along one side of the motion plane
_SPANS = 4
_SPEEDS = np.array([2.0, 4.0, 8.0, 16.0, 32.0])  # bin edges, pixels of the motion plane per pair
_SHAPE_CELLS = 6
_SHAPE_SIDE = 48  # the window around what moves is scaled to this
_STILL = 1.0  # pixels: less than that off the camera is no motion

SIZES = {
    "colour": _VIEWS * _CELLS**2 * 6,
    "edges": _VIEWS * _CELLS**2 * _DIRECTIONS,
    "heading": _SPANS * _DIRECTIONS,
    "turning": _SPANS * _DIRECTIONS,
    "speed": len(_SPEEDS) + 1,
    "place": _CELLS**2,
    "shape": _SHAPE_CELLS**2 * _DIRECTIONS,
}
"""Numbers in each part, in the order of the parts."""

DESCRIPTOR_SIZE = sum(SIZES.values())


def descriptor(clip: Clip) -> np.ndarray:
    """The feature of a clip.

    Args:
      clip: the decoded clip, of any number of frames; the largest square in the middle of its
        picture counts.

    Returns:
      float32 [DESCRIPTOR_SIZE].
    """
    clip = clip.centre()
    frames = np.rint(np.linspace(0, len(clip) - 1, _VIEWS)).astype(np.int64)
    parts = _appearance(clip.rgb(frames))
    if len(clip) > 1:
        parts |= _motion(clip)
    return _join(parts)


def descriptor_image(rgb_SS3: np.ndarray) -> np.ndarray:
    """The feature of an image: that of a clip in which nothing changes.

    Args:
      rgb_SS3: uint8, a square view.

    Returns:
      float32 [DESCRIPTOR_SIZE].
    """
    return _join(_appearance(np.stack([rgb_SS3] * _VIEWS)))


def _join(parts: dict[str, np.ndarray]) -> np.ndarray:
    scaled = []
    for name, size in SIZES.items():
        values = parts.get(name, np.zeros(size)).ravel()
        assert values.size == size, f"{name} has {values.size} numbers, not {size}"
        norm = np.linalg.norm(values)
        scaled.append(values * (WEIGHTS[name] / norm if norm > 0 else 0.0))
    return np.concatenate(scaled).astype(np.float32)


def _appearance(rgb_VSS3: np.ndarray) -> dict[str, np.ndarray]:
    views = np.stack([_scaled(view) for view in rgb_VSS3]).astype(np.float32) / 255
    cell = _SIDE // _CELLS
    cells = views.reshape(len(views), _CELLS, cell, _CELLS, cell, 3)
    colour = np.stack([cells.mean(axis=(2, 4)) - 0.5, cells.std(axis=(2, 4))])
    luma = views @ np.array([0.299, 0.587, 0.114], np.float32)
    edges = np.stack([_edges(view, _CELLS) for view in luma])
    return {"colour": colour, "edges": np.sqrt(edges)}


def _edges(luma_SS: np.ndarray, cells: int) -> np.ndarray:
    """Histograms of gradient directions, float64 [cells * cells, directions]."""
    side = len(luma_SS)
    y, x = np.divmod(np.arange(side**2), side)
    cell_of = (y * cells // side) * cells + x * cells // side
    down, right = np.gradient(luma_SS)
    # An edge has no sign: doubling the angle makes opposite gradients one direction.
    angle = 2 * np.arctan2(down, right).ravel()
    return _directions(angle, np.hypot(down, right).ravel(), cell_of, cells**2)


def _scaled(view: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(view).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))


def _motion(clip: Clip) -> dict[str, np.ndarray]:
    """Histograms of what moves against the camera, each block weighted by what its vector gains."""
    first_T, later_T = _pair_ids(clip.seconds_M)
    moved_TN2, gain_TN = _residual_motion(clip, first_T, later_T)
    pairs, blocks = gain_TN.shape
    place_N2 = block_origins(_GRID, _GRID) + BLOCK / 2
    total_T1 = np.maximum(gain_TN.sum(axis=1, keepdims=True), 1e-9)
    centre_T12 = (gain_TN @ place_N2 / total_T1)[:, None]
    arm_TN2 = place_N2 - centre_T12
    heading_TN = np.arctan2(moved_TN2[..., 1], moved_TN2[..., 0])
    turning_TN = heading_TN - np.arctan2(arm_TN2[..., 1], arm_TN2[..., 0])
    # Near the centre "outward" means nothing.
    lever_TN = np.minimum(np.hypot(arm_TN2[..., 0], arm_TN2[..., 1]) / BLOCK, 1.0)
    third_TN = np.repeat(np.arange(pairs) * 3 // pairs, blocks)
    length_TN = np.hypot(moved_TN2[..., 0], moved_TN2[..., 1])
    speed = np.bincount(np.digitize(length_TN.ravel(), _SPEEDS), gain_TN.ravel(), len(_SPEEDS) + 1)
    step = _GRID // _CELLS
    place = gain_TN.sum(axis=0).reshape(_CELLS, step, _CELLS, step).sum(axis=(1, 3))
    parts = {
        "heading": _spans(heading_TN, gain_TN, third_TN),
        "turning": _spans(turning_TN, gain_TN * lever_TN, third_TN),
        "speed": speed,
        "place": place,
        "shape": _shape(clip.luma_MHW[later_T], gain_TN),
    }
    return {name: np.sqrt(part) for name, part in parts.items()}


def _shape(luma_TSS: np.ndarray, gain_TN: np.ndarray) -> np.ndarray:
    """Edges of what moves, in a window that follows its place and its size."""
    to_pixels = luma_TSS.shape[-1] / _GRID
    row_N, column_N = np.divmod(np.arange(_GRID**2), _GRID) + np.float64(0.5)
    edges = np.zeros((_SHAPE_CELLS**2, _DIRECTIONS))
    for luma_SS, gain_N in zip(luma_TSS, gain_TN, strict=True):
        total = gain_N.sum()
        if total <= 0:
            continue
        x, y = gain_N @ column_N / total, gain_N @ row_N / total
        spread = gain_N @ ((column_N - x) ** 2 + (row_N - y) ** 2) / total
        # Half the side of the square that has this spread; blocks reach half a block further.
        half = to_pixels * (np.sqrt(1.5 * spread) + 0.5)
        centre_x, centre_y = x * to_pixels, y * to_pixels
        window = Image.fromarray(luma_SS).resize(
            (_SHAPE_SIDE, _SHAPE_SIDE),
            Image.Resampling.BILINEAR,
            box=_inside(centre_x, centre_y, half, len(luma_SS)),
        )
        edges += _edges(np.asarray(window, np.float32), _SHAPE_CELLS)
    return edges


def _inside(x: float, y: float, half: float, side: int) -> tuple[float, float, float, float]:
    """A square (left, top, right, bottom) around (x, y), moved and shrunk to lie in the picture."""
    half = min(half, side / 2)
    left = min(max(x - half, 0.0), side - 2 * half)
    top = min(max(y - half, 0.0), side - 2 * half)
    return left, top, left + 2 * half, top + 2 * half


def _residual_motion(
    clip: Clip, first_T: np.ndarray, later_T: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(motion [T, N, 2], gain [T, N] in grey levels and 0 where a block stands still), float32."""
    order = np.stack([first_T, later_T], axis=1).ravel()
    planes, vectors = search_vectors(clip.luma_MHW[order], _GRID, _GRID)
    vectors_TN2 = vectors[::2]  # the odd ones lead from one pair to the next
    earlier, later = planes[::2], [blocks_of(plane) for plane in planes[1::2]]
    texture_TN = np.stack([texture(blocks_NB) for blocks_NB in later])
    camera_TN2 = camera_motion(vectors_TN2.astype(np.float32), texture_TN, _GRID, "similarity")
    corners_N2 = block_origins(_GRID, _GRID)
    limit = (_GRID - 1) * BLOCK
    camera_source = corners_N2 + np.rint(camera_TN2).astype(np.int64)
    inside_TN = ((camera_source >= 0) & (camera_source <= limit)).all(axis=2)
    camera_source = np.clip(camera_source, 0, limit)
    own_source = corners_N2 + vectors_TN2
    gain_TN = np.zeros(texture_TN.shape, np.float32)
    for t, blocks_NB in enumerate(later):
        by_camera = difference(blocks_NB, blocks_at(earlier[t], camera_source[t])).mean(axis=1)
        by_own = difference(blocks_NB, blocks_at(earlier[t], own_source[t])).mean(axis=1)
        gain_TN[t] = np.maximum(by_camera - by_own, 0)
    # A vector points to where the block came from: motion is its opposite.
    moved_TN2 = camera_TN2 - vectors_TN2
    # What the camera has just brought into view is new, not moving.
    gain_TN[~inside_TN | (np.hypot(moved_TN2[..., 0], moved_TN2[..., 1]) < _STILL)] = 0
    return moved_TN2, gain_TN


def _pair_ids(seconds_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(earlier, later) samples of up to 8 pairs, _GAP apart but at most an eighth of the clip."""
    frames = len(seconds_M)
    spacing = max(float(np.median(np.diff(seconds_M))), 1e-6)
    gap = int(np.clip(round(_GAP / spacing), 1, max(1, frames // _PAIRS)))
    first_T = np.unique(np.rint(np.linspace(0, frames - 1 - gap, _PAIRS)).astype(np.int64))
    return first_T, first_T + gap


def _spans(angle_TN: np.ndarray, weight_TN: np.ndarray, third_TN: np.ndarray) -> np.ndarray:
    """Histograms of directions: whole clip, first, second, last third. Float64 [4, directions]."""
    thirds = _directions(angle_TN.ravel(), weight_TN.ravel(), third_TN, 3)
    return np.concatenate([thirds.sum(axis=0, keepdims=True), thirds])


def _directions(
    angle: np.ndarray, weight: np.ndarray, group: np.ndarray, groups: int
) -> np.ndarray:
    """Histogram of angles for each group, every angle shared between the two nearest bins.

    Args:
      angle: radians [n]; bin 0 is centred at 0.
      weight: [n].
      group: integers [n] below `groups`.
      groups: number of groups.

    Returns:
      float64 [groups, directions].
    """
    position = angle * (_DIRECTIONS / (2 * np.pi))
    low = np.floor(position)
    share = position - low
    low = low.astype(np.int64)
    hist = np.zeros(groups * _DIRECTIONS)
    for bin_, part in ((low, 1 - share), (low + 1, share)):
        index = group * _DIRECTIONS + bin_ % _DIRECTIONS
        hist += np.bincount(index, weight * part, minlength=len(hist))
    return hist.reshape(groups, _DIRECTIONS)
