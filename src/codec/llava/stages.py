"""The published tool's stage-1 files, which patches of which frames; stage_writer.py writes them.

Three files of one prefix, `sample_<id>__<stem>__<sha1 of the path>__<sha1 of video|id|row>_T64_
square576_p16_K10368`: `.visidx_thw.npy` int32 [K, 3] (first frame in reading order, then by falling
score), `.frame_ids.npy` int32 [64], `.meta.json`. Their t is an index into frame_ids and at the
same time the position that the encoder sees. A clip of fewer samples than slots therefore has the
frame ids of its slots, each repeated up to the next sample's.

Shape suffixes: K patches, T slots, M samples, 3 is (t, h, w), H and W pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import posixpath
import re
from pathlib import Path

import numpy as np

from ...files import join, list_files, read_bytes
from ...sequence import NUM_SLOTS
from ..clip import Clip, sample_clip
from ..container import open_video
from ..errors import MediaError
from ..view import View, ViewScaler
from .keys import sanitise, sha1, stem_of
from .mosaic import Mosaics, fill, mosaic_budget
from .options import MosaicOptions

POLICY_OF = {"keep": "zero", "exclude": "exclude", "repeat": "repeat"}  # the published names
_META = re.compile(
    r"sample_(?P<head>.+)__(?P<path>[0-9a-f]{8})__[0-9a-f]{8}_T\d+_square\d+_p\d+_K\d+\.meta\.json"
)


@dataclasses.dataclass(frozen=True)
class RowName:
    """A row of a data set, as the names of its stage-1 files tell it.

    Attributes:
      sample_id: its id.
      video: its video, as the row has it.
      row: its number in the data set, from 0.
    """

    sample_id: str
    video: str
    row: int

    def prefix(self, size: int, patch: int, selected: int) -> str:
        """What the names of its files begin with."""
        key = f"{self.video}|{self.sample_id}|{self.row}"
        head = f"sample_{sanitise(self.sample_id)}__{sanitise(stem_of(self.video))}"
        shape = f"T{NUM_SLOTS}_square{size}_p{patch}_K{selected}"
        return f"{head}__{sha1(self.video)}__{sha1(key)}_{shape}"


def stage1_names(row: RowName, options: MosaicOptions, selected: int) -> list[str]:
    """The three files of a row, the one that is written last at the end."""
    prefix = row.prefix(options.size, options.patch, selected)
    return [f"{prefix}.{end}" for end in ("visidx_thw.npy", "frame_ids.npy", "meta.json")]


def npy(array: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


class SelectionIndex:
    """The stage-1 files below a folder, found by row."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._by_head: dict[str, list[tuple[str, str]]] = {}
        for name in list_files(folder):
            found = _META.fullmatch(posixpath.basename(name))
            if found:
                prefix = name.removesuffix(".meta.json")
                self._by_head.setdefault(found["head"], []).append((found["path"], prefix))

    def find(self, sample_id: str, video: str) -> str | None:
        """The prefix of a row's files, or None.

        The id and the stem have to be those of the row, and so has the hash of the path; where no
        file has that (the published hash changes with the folder that a data set is mounted in),
        the only one of this id and stem is taken, if its recorded video has the same file name.
        """
        stem = stem_of(video)
        heads = {f"{sample_id}__{stem}", f"{sanitise(sample_id)}__{sanitise(stem)}"}
        found = sorted(entry for head in heads for entry in self._by_head.get(head, ()))
        exact = [prefix for path, prefix in found if path == sha1(video)]
        if exact:
            return join(self._folder, exact[0])
        if len({path for path, _ in found}) != 1:
            return None
        prefix = join(self._folder, found[0][1])
        recorded = str(json.loads(read_bytes(f"{prefix}.meta.json")).get("video"))
        same = posixpath.basename(recorded) == posixpath.basename(video)
        return prefix if same else None


@dataclasses.dataclass(frozen=True, eq=False)
class Stage1:
    """What stage-1 files say.

    Attributes:
      thw_K3: int32, sorted by (t, h, w).
      frame_ids_T: int32.
      mosaics: how many images the patches are to fill.
      hash: of the three files.
    """

    thw_K3: np.ndarray
    frame_ids_T: np.ndarray
    mosaics: int
    hash: str


def read_selection(prefix: str, options: MosaicOptions) -> Stage1:
    """Reads and checks the stage-1 files of a row.

    Args:
      prefix: of the three files.
      options: size, patch and padding have to be those of the files.

    Returns:
      What they say.

    Raises:
      ValueError: they are damaged or were made for another shape.
      OSError: one of them is missing.
    """
    contents = [read_bytes(f"{prefix}{end}") for end in (".visidx_thw.npy", ".frame_ids.npy")]
    try:
        thw, ids = (np.load(io.BytesIO(content), allow_pickle=False) for content in contents)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{prefix}: is no array of numbers ({error})") from error
    contents.append(read_bytes(f"{prefix}.meta.json"))
    meta = json.loads(contents[2])
    for name, value in (
        ("square_size", options.size),
        ("patch", options.patch),
        ("padding_policy", POLICY_OF[options.config.padding]),
    ):
        if meta.get(name) != value:
            raise ValueError(
                f"{prefix}: was made with {name} = {meta.get(name)}, not {value}: give that "
                "--size, --patch and --padding (zero is called keep here)"
            )
    _check_arrays(prefix, thw, ids, options)
    mosaics = int(meta["keep_frames_equiv"])
    if mosaics > options.num_images:
        raise ValueError(f"{prefix}: is meant for {mosaics} images: give --num-images {mosaics}")
    order = np.lexsort(thw.T[::-1])
    digest = hashlib.sha256(b"".join(contents)).hexdigest()
    return Stage1(thw[order].astype(np.int32), ids.astype(np.int32), mosaics, digest)


def pack_selection(path: Path, stage1: Stage1, options: MosaicOptions) -> Mosaics:
    """Lays out the patches that stage-1 files name.

    Args:
      path: the video.
      stage1: what the files say.
      options: as for `read_selection`.

    Returns:
      The mosaics.

    Raises:
      MediaError: the video is unusable, or has not the frames or not the picture that they need.
    """
    ids_M = np.unique(stage1.frame_ids_T)
    clip = _frames(path, ids_M, options)
    thw = stage1.thw_K3.copy()
    thw[:, 0] = np.searchsorted(ids_M, stage1.frame_ids_T[thw[:, 0]])
    cells = mosaic_budget(clip, 1) * stage1.mosaics
    if len(thw) > cells:
        raise MediaError(
            path,
            f"has stage-1 files of {len(thw)} patches, more than the {cells} of its "
            f"{stage1.mosaics} mosaics: they were made of another picture",
        )
    return fill(clip, thw, stage1.thw_K3, cells)


def _frames(path: Path, ids_M: np.ndarray, options: MosaicOptions) -> Clip:
    """A clip of stated frames."""
    clip = sample_clip(
        path,
        min(len(ids_M), NUM_SLOTS),
        options.size,
        options.patch,
        geometry="square",
        sampling=options.sampling,
        config=options.config,
    )
    if np.array_equal(clip.frame_ids_M, ids_M):
        return clip
    # Files made with an offset, or with another sampling: the frames are not evenly spaced.
    view = View("square", options.size, options.patch)
    wanted = {int(frame): place for place, frame in enumerate(ids_M)}
    yuv_M3HW = np.empty((len(ids_M), 3, *clip.luma_MHW.shape[1:]), np.uint8)
    seconds = np.zeros(len(ids_M))
    with open_video(path) as (container, stream):
        scaler = ViewScaler(view, stream.sample_aspect_ratio)
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                place = wanted.pop(number)
                scaler.write(frame, yuv_M3HW[place])
                seconds[place] = frame.time or 0.0
            if not wanted:
                break
    if wanted:
        raise MediaError(path, f"has no frame {min(wanted)}, which its stage-1 files name")
    return dataclasses.replace(
        clip,
        yuv_M3HW=yuv_M3HW,
        frame_ids_M=ids_M,
        seconds_M=seconds,
        gaps_T=np.diff(seconds),
        partner_luma_THW=None,
    )


def _check_arrays(
    prefix: str, thw_K3: np.ndarray, ids_T: np.ndarray, options: MosaicOptions
) -> None:
    for name, array, columns in (("visidx_thw", thw_K3, (3,)), ("frame_ids", ids_T, ())):
        if array.dtype.kind not in "iu" or array.shape[1:] != columns or len(array) == 0:
            raise ValueError(
                f"{prefix}.{name}.npy: is {array.dtype} {list(array.shape)}, not integers "
                f"[{', '.join(['N', *map(str, columns)])}]"
            )
    side = options.size // options.patch
    limits = np.array([len(ids_T), side, side])
    if (thw_K3 < 0).any() or (thw_K3 >= limits).any() or len(ids_T) > NUM_SLOTS:
        raise ValueError(
            f"{prefix}: names a patch outside of {len(ids_T)} frames (at most {NUM_SLOTS}) of "
            f"{side} x {side} patches"
        )
