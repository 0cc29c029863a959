"""Writes the published tool's stage-1 files; `stages.py` says what is in them.

Shape suffixes: T slots, M samples, L patches, 3 is (t, h, w).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...files import join, write_atomic
from ...sequence import NUM_SLOTS, slot_times
from ..clip import Clip
from ..container import open_video
from ..image_folder import ImageFolder
from ..selection import Selection
from ..view import View, ViewScaler
from .options import MosaicOptions
from .stages import POLICY_OF, RowName, npy, stage1_names


def write_selection(
    folder: str, row: RowName, selection: Selection, options: MosaicOptions, path: Path
) -> None:
    """Writes the stage-1 files of one row.

    Args:
      folder: an existing folder, or a URL.
      row: whose they are.
      selection: of at most 64 samples.
      options: what it was made with; geometry "square".
      path: the video, for the size of its picture.
    """
    clip = selection.clip
    meta = {
        "sample_id": row.sample_id,
        "sample_key": f"{row.video}|{row.sample_id}|{row.row}",
        "video": row.video,
        "T": NUM_SLOTS,
        "frame_ids": None,
        "preprocess": f"square{options.size}",
        "square_size": options.size,
        "patch": options.patch,
        "keep_frames_equiv": min(options.num_images, len(clip)),
        "padding_policy": POLICY_OF[clip.config.padding],
        "keep_uniform_first": False,
        "keep_first_full_frame": clip.config.first_frame == "whole",
        **_letterbox(clip, path),
        "K": len(selection),
        "padding_patch_filtered": 0,
    }
    first = np.searchsorted(selection.thw_L3[:, 0], 1)
    start = first if clip.config.first_frame == "whole" else 0
    best = np.argsort(-selection.score_L[start:], kind="stable") + start
    order = np.concatenate([np.arange(start), best])
    slots = slot_times(len(clip))
    frame_ids_T = clip.frame_ids_M[np.searchsorted(slots, np.arange(NUM_SLOTS), side="right") - 1]
    contents = [
        npy(selection.positions_L3[order]),
        npy(frame_ids_T.astype(np.int32)),
        (json.dumps(meta, indent=2) + "\n").encode(),
    ]
    for name, content in zip(stage1_names(row, options, len(selection)), contents, strict=True):
        write_atomic(join(folder, name), content)


def _letterbox(clip: Clip, path: Path) -> Mapping[str, Any]:
    """How the picture lies in the square, in the published words."""
    height, width = _picture_size(path, clip)
    place, size = clip.placement, clip.placement.height
    rows, columns = place.patches(clip.patch, whole=True)
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return {
        "H0": height,
        "W0": width,
        "pad_info": {
            "scale": size / max(height, width),
            "Hn": place.scaled_height,
            "Wn": place.scaled_width,
            "pad_top": place.top,
            "pad_left": place.left,
            "pad_bottom": size - place.rows.stop,
            "pad_right": size - place.columns.stop,
            "out_size": size,
            "H0": height,
            "W0": width,
        },
        "hb": clip.rows,
        "wb": clip.columns,
        "S_total": clip.rows * clip.columns,
        "S_valid": area,
        "valid_ranges": {
            "S_valid": area,
            "hb_total": clip.rows,
            "wb_total": clip.columns,
            "valid_h_start": rows.start,
            "valid_h_end": rows.stop,
            "valid_w_start": columns.start,
            "valid_w_end": columns.stop,
        },
    }


def _picture_size(path: str | os.PathLike[str], clip: Clip) -> tuple[int, int]:
    """(height, width) of the upright picture before it was scaled."""
    view = View("square", clip.placement.height, clip.patch)
    if Path(path).is_dir():
        height, width = ViewScaler(view, None).upright_size(ImageFolder(path).read(0))
    else:
        with open_video(path) as (container, stream):
            scaler = ViewScaler(view, stream.sample_aspect_ratio)
            height, width = scaler.upright_size(next(container.decode(stream)))
    return round(height), round(width)
