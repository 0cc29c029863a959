"""How much a patch holds that the frame before it does not: residual and motion, fused.

Shape suffixes: T pairs of sampled frames, N patches of a frame, B = 256 pixels of a motion block.
"""

from __future__ import annotations

import numpy as np

from .camera import camera_motion
from .config import SelectionConfig
from .motion import Motion

_PERCENTILE = 0.95
_RESIDUAL_FLOOR = 2.0  # grey levels: below them a residual is noise
_MOTION_FLOOR = 0.5  # pixels: integer vectors jitter by that
_TEXTURED = 4.0  # grey levels of standard deviation; the search finds anything on flatter blocks


def saliency(motion: Motion, grid: int, config: SelectionConfig) -> np.ndarray:
    """Score of every patch after the first frame.

    Residual and motion are each divided by their 95th percentile (of the clip, of the frame, or the
    geometric mean of both, by `config.scale`), cut at 1, and averaged with the weights of the
    configuration. The parts are those of the published OneVision-Encoder tools; scale and camera
    model are this project's.

    Args:
      motion: block motion of the clip.
      grid: patches along one side.
      config: scale, camera model and weights.

    Returns:
      float32 [T, N] in 0..1.
    """
    residual_TN = residual_score(motion.error_TNB, config.scale)
    camera_TN2 = camera_motion(motion.vectors_TN2, motion.texture_TN, grid, config.camera)
    moved_TN = motion_score(motion.vectors_TN2 - camera_TN2, motion.texture_TN, config.scale)
    total = config.w_res + config.w_mv
    return (
        np.float32(config.w_res / total) * residual_TN + np.float32(config.w_mv / total) * moved_TN
    )


def residual_score(error_TNB: np.ndarray, scale: str) -> np.ndarray:
    """Mean over each block of min(error, a) / a, a being the 95th percentile of the pixels' error.

    Args:
      error_TNB: uint8.
      scale: "clip", "sqrt" or "frame".

    Returns:
      float32 [T, N].
    """
    pairs, blocks, pixels = error_TNB.shape
    # Percentiles from histograms: sorting 4 million pixels would cost more than the motion search.
    counts_T = np.stack([np.bincount(e.ravel(), minlength=256) for e in error_TNB] or [[0] * 256])
    frame_T = _histogram_percentile(counts_T)
    clip = _histogram_percentile(counts_T.sum(axis=0, keepdims=True))
    limit_T = np.maximum(_mix(frame_T, clip, scale), _RESIDUAL_FLOOR).astype(np.float32)
    score_TN = np.empty((pairs, blocks), np.float32)
    for t in range(pairs):
        cut = np.minimum(error_TNB[t], limit_T[t])
        score_TN[t] = cut.sum(axis=1) / (limit_T[t] * pixels)
    return score_TN


def motion_score(moved_TN2: np.ndarray, texture_TN: np.ndarray, scale: str) -> np.ndarray:
    """Length of each vector over the 95th percentile, at most 1, less where the block is flat.

    Args:
      moved_TN2: float32, vectors less the camera's, in pixels of the motion plane.
      texture_TN: float32, standard deviation of each block.
      scale: "clip", "sqrt" or "frame".

    Returns:
      float32 [T, N].
    """
    length_TN = np.hypot(moved_TN2[..., 0], moved_TN2[..., 1])
    if len(length_TN) == 0:
        return length_TN
    frame_T1 = np.quantile(length_TN, _PERCENTILE, axis=1, keepdims=True)
    limit_T1 = np.maximum(_mix(frame_T1, np.quantile(length_TN, _PERCENTILE), scale), _MOTION_FLOOR)
    textured_TN = np.minimum(texture_TN / _TEXTURED, 1.0)
    return (np.minimum(length_TN / limit_T1, 1.0) * textured_TN).astype(np.float32)


def _mix(frame: np.ndarray, clip: np.ndarray, scale: str) -> np.ndarray:
    if scale == "clip":
        return np.broadcast_to(clip, frame.shape)
    if scale == "sqrt":
        return np.sqrt(frame * clip)
    return frame


def _histogram_percentile(counts: np.ndarray) -> np.ndarray:
    """Smallest value that 95 % of the pixels do not exceed, per row of a [rows, 256] histogram."""
    below = np.cumsum(counts, axis=1)
    return (below >= _PERCENTILE * below[:, -1:]).argmax(axis=1).astype(np.float64)
