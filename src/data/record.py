"""One record: the bytes of one safetensors file that hold one patch sequence and what is known
about it.

The schema is stated in docs/data_format.md. Shape suffixes: L patches, P patch side, M sampled
frames, D descriptor.
"""

from __future__ import annotations

import dataclasses
import io
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from PIL import Image

from ..codec.image import centre_crop, image_sequence, open_image
from ..sequence import NUM_SLOTS, PatchSequence

RECORD_VERSION = 2
STORAGES = ("jpeg", "png", "raw")
PICTURE = "picture"
"""Storage of an image: its encoded file, which the loader crops, flips and cuts into patches."""
_BLOCK = 8  # side of a JPEG transform block: with 4:4:4 sampling no coded unit is larger
_COLUMNS = 32  # cells in a row of the mosaic
_MAX_INDEX = np.iinfo(np.uint16).max


class RecordError(ValueError):
    """A record, a shard or a record set that cannot be used; the message says which and why.

    Attributes:
      kind: in a word, for counts.
    """

    kind = "damaged"


@dataclasses.dataclass(frozen=True)
class Storage:
    """How the patches of a record are kept.

    Attributes:
      kind: `jpeg`, `png` (both one mosaic image) or `raw` (uint8 array); png and raw are lossless.
      quality: JPEG quality 1..100, ignored by the lossless kinds.
    """

    kind: str = "jpeg"
    quality: int = 95

    def __post_init__(self) -> None:
        if self.kind not in STORAGES:
            raise ValueError(f"storage = {self.kind!r} must be one of {', '.join(STORAGES)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality = {self.quality} must lie in 1..100")


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """A patch sequence with its key and what packing knew.

    Attributes:
      key: unique name within its record set.
      mode: `codec`, `frames`, `collage` or `image`.
      view: (height, width) of the view in pixels; one frame of a collage.
      budget: upper bound on the number of patches that the selection was given.
      sequence: the patches and their positions.
      descriptor: float32 [D], the training-free description of the whole clip.
      pts: float32 [M], seconds of the sampled frames, in order; sample i has t = slot_times(M)[i];
        [0] for an image.
      gaps: float32 [M - 1], seconds between each later sample and the frame it was compared with.
      group: of a long video cut into groups: (place of this one, index of its first sample).
      labels: given labels by column name, as text.
      source: path of the file relative to its input, for people.
      picture: of an image the encoded file, which is stored instead of its patches.
      texts: captions by name, see `data.pairs`.
    """

    key: str
    mode: str
    view: tuple[int, int]
    budget: int
    sequence: PatchSequence
    descriptor: np.ndarray
    pts: np.ndarray
    gaps: np.ndarray
    group: tuple[int, int] | None = None
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""
    picture: bytes | None = None
    texts: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("descriptor", "pts", "gaps"):
            value = getattr(self, name)
            if value.dtype != np.float32 or value.ndim != 1:
                raise ValueError(
                    f"{name} must be float32 with one axis, got {value.dtype} {list(value.shape)}"
                )
        if len(self.pts) > NUM_SLOTS:
            raise ValueError(f"pts holds {len(self.pts)} frames, at most {NUM_SLOTS} are sampled")
        if len(self.gaps) != len(self.pts) - 1:
            raise ValueError(f"gaps holds {len(self.gaps)} values for {len(self.pts)} frames")
        if len(self.sequence) > self.budget:
            raise ValueError(
                f"record {self.key!r} holds {len(self.sequence)} patches, over its budget of "
                f"{self.budget}"
            )


def encode_record(record: Record, storage: Storage) -> bytes:
    """Turns a record into bytes; equal records and storage give equal bytes.

    Args:
      record: what to store.
      storage: how to store its patches, unless it has a picture.

    Returns:
      A safetensors file. All text lies in one metadata entry, because safetensors writes several in
      random order.
    """
    sequence = record.sequence
    if sequence.positions.max() > _MAX_INDEX:
        raise ValueError(
            f"positions of {record.key!r} exceed {_MAX_INDEX}, the largest that is stored"
        )
    header = {
        "version": RECORD_VERSION,
        "key": record.key,
        "mode": record.mode,
        "view": record.view,
        "patch": sequence.patch,
        "budget": record.budget,
        "storage": storage.kind if record.picture is None else PICTURE,
        "group": record.group,
        "labels": record.labels,
        "source": record.source,
    }
    if record.texts:  # left out else, so that records without texts keep their bytes
        header["texts"] = record.texts
    tensors = {"descriptor": record.descriptor, "pts": record.pts, "gaps": record.gaps}
    if record.picture is not None:
        tensors["picture"] = np.frombuffer(record.picture, np.uint8)
    else:
        tensors["positions"] = sequence.positions.astype(np.uint16)
    if record.picture is None and storage.kind == "raw":
        tensors["patches"] = np.ascontiguousarray(sequence.patches)
    elif record.picture is None:
        tensors["mosaic"] = np.frombuffer(encode_mosaic(sequence.patches, storage), np.uint8)
    return _save(tensors, header)


def decode_record(data: bytes, see: Callable[[Image.Image], np.ndarray] | None = None) -> Record:
    """Reads what `encode_record` wrote.

    Args:
      data: the bytes of one record.
      see: RGB image -> uint8 [S, S, 3], the view of a stored picture; by default the centre at the
        size that it was packed for. Records that store patches have their view already.

    Returns:
      The record; its patches are the stored ones exactly for `raw` and `png`, close to them for
      `jpeg`, and cut from the view of a picture.

    Raises:
      RecordError: the bytes are damaged, are no record, or are of a version that this program does
        not know.
    """
    header = read_header(data)
    try:
        tensors = safetensors.numpy.load(data)
        view, budget, picture = tuple(header["view"]), header["budget"], None
        if header["storage"] == PICTURE:
            picture = tensors["picture"].tobytes()
            image = open_image(io.BytesIO(picture), header["source"])
            rgb_SS3 = centre_crop(image, view[0]) if see is None else see(image)
            sequence = image_sequence(rgb_SS3, header["patch"])
            view, budget = rgb_SS3.shape[:2], len(sequence)
        else:
            positions = tensors["positions"].astype(np.int32)
            if header["storage"] == "raw":
                patches = tensors["patches"]
            else:
                mosaic = tensors["mosaic"].tobytes()
                patches = decode_mosaic(mosaic, len(positions), header["patch"])
            sequence = PatchSequence(patches, positions)
        return Record(
            key=header["key"],
            mode=header["mode"],
            view=view,
            budget=budget,
            sequence=sequence,
            picture=picture,
            descriptor=tensors["descriptor"],
            pts=tensors["pts"],
            gaps=tensors["gaps"],
            group=None if header["group"] is None else tuple(header["group"]),
            labels=header["labels"],
            source=header["source"],
            texts=header.get("texts", {}),
        )
    except KeyError as error:
        raise RecordError(f"record {header.get('key')!r} lacks the field {error}") from error
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise RecordError(f"record {header.get('key')!r} is damaged: {error}") from error


def stored_image(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the image file of a record of storage `picture`, which is not decoded.

    Raises:
      RecordError: the bytes are damaged, or the record holds patches.
    """
    header = read_header(data)
    return header, _tensor(data, header, "picture").tobytes()


def stored_descriptor(data: bytes) -> np.ndarray:
    """The descriptor of a record, float32 [D]; its patches or picture are not decoded.

    Raises:
      RecordError: the bytes are damaged.
    """
    header = read_header(data)
    found = _tensor(data, header, "descriptor")
    if found.dtype != np.float32 or found.ndim != 1:
        raise RecordError(
            f"record {header.get('key')!r} is damaged: its descriptor is {found.dtype} "
            f"{list(found.shape)}"
        )
    return found


def _tensor(data: bytes, header: dict[str, Any], name: str) -> np.ndarray:
    try:
        return safetensors.numpy.load(data)[name]
    except KeyError as error:
        raise RecordError(f"record {header.get('key')!r} lacks the field {error}") from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise RecordError(f"record {header.get('key')!r} is damaged: {error}") from error


def with_texts(data: bytes, texts: dict[str, str]) -> bytes:
    """The bytes of a record with other texts and nothing else changed.

    Raises:
      RecordError: the bytes are damaged.
    """
    header = {**read_header(data), "texts": texts}
    try:
        tensors = safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise RecordError(f"record {header.get('key')!r} is damaged: {error}") from error
    return _save(tensors, header)


def _save(tensors: dict[str, np.ndarray], header: dict[str, Any]) -> bytes:
    text = json.dumps(header, sort_keys=True, ensure_ascii=False)
    return safetensors.numpy.save(tensors, metadata={"record": text})


def read_header(data: bytes) -> dict[str, Any]:
    """What a record says of itself, without its patches: our metadata entry, version checked.

    Raises:
      RecordError: the bytes are no record, or one of another version.
    """
    try:
        (size,) = struct.unpack_from("<Q", data)
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["record"])
        version = header["version"]
    except (struct.error, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"these {len(data)} bytes are no CodecViT record") from error
    if version != RECORD_VERSION:
        raise RecordError(
            f"record {header.get('key')!r} has version {version!r}, this program reads version "
            f"{RECORD_VERSION}: pack the data again or install a matching codecvit"
        )
    return header


def _cell(patch: int) -> int:
    """Side of a mosaic cell: the patch rounded up, so that no transform block holds two patches."""
    return -(-patch // _BLOCK) * _BLOCK


def encode_mosaic(patches_LPP3: np.ndarray, storage: Storage) -> bytes:
    """Patches in rows of cells, each padded by repeating its edge, which costs the fewest bits."""
    count, patch = patches_LPP3.shape[:2]
    cell, columns = _cell(patch), min(_COLUMNS, count)
    rows = -(-count // columns)
    before, after = (cell - patch) // 2, (cell - patch + 1) // 2
    cells = np.zeros((rows * columns, cell, cell, 3), np.uint8)
    pad = (before, after)
    cells[:count] = np.pad(patches_LPP3, ((0, 0), pad, pad, (0, 0)), mode="edge")
    pixels = cells.reshape(rows, columns, cell, cell, 3).swapaxes(1, 2)
    image = Image.fromarray(pixels.reshape(rows * cell, columns * cell, 3))
    file = io.BytesIO()
    if storage.kind == "jpeg":
        # 4:4:4: with halved chroma a decoder interpolates across the borders of cells of 16-pixel
        # patches.
        image.save(file, "JPEG", quality=storage.quality, subsampling="4:4:4")
    else:
        image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def decode_mosaic(data: bytes, count: int, patch: int) -> np.ndarray:
    """Undoes `encode_mosaic`: uint8 [L, P, P, 3]."""
    pixels = np.asarray(Image.open(io.BytesIO(data), formats=("JPEG", "PNG")))
    cell, columns = _cell(patch), min(_COLUMNS, count)
    rows = -(-count // columns)
    if pixels.shape != (rows * cell, columns * cell, 3):
        raise RecordError(f"mosaic of shape {list(pixels.shape)} does not hold {count} patches")
    cells = pixels.reshape(rows, cell, columns, cell, 3).swapaxes(1, 2)
    start = (cell - patch) // 2
    stop = start + patch
    cells = cells.reshape(rows * columns, cell, cell, 3)[:count, start:stop, start:stop]
    return np.ascontiguousarray(cells)
