"""A folder that is written beside its place and renamed: never seen half-written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .weights import INDEX, SHARD_NAME, WEIGHTS

ENCODER_CODE = (
    "configuration_onevision_encoder.py",
    "modeling_onevision_encoder.py",
    "image_processing_onevision_encoder.py",
)
CLIP_CODE = (
    "configuration_openvision_clip.py",
    "modeling_openvision_clip.py",
    "image_processing_onevision_encoder.py",
)
OPENCLIP_CONFIG = "open_clip_config.json"
OPENCLIP_WEIGHTS = "open_clip_model.safetensors"
DECODER = "decoder.safetensors"
IMAGE_TEXT = "image_text.safetensors"
JAX_FOLDER = "jax_orbax_weight"
"""Weights for OpenCLIP; the caption decoder; the parts of an image-text model beside an encoder of
ours, by path names of our tree; OpenVision's JAX weights."""

ONNX = "model.onnx"
ONNX_DATA = "model.onnx.data"  # the weights, where they are too large for one protocol buffer
TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")
ENCODER_FILES = frozenset(
    {"config.json", "preprocessor_config.json", "README.md", WEIGHTS, *ENCODER_CODE}
)
EXPORTED = ENCODER_FILES.union(
    CLIP_CODE,
    TOKENIZER_FILES,
    (INDEX, OPENCLIP_CONFIG, OPENCLIP_WEIGHTS, DECODER, IMAGE_TEXT),
    (ONNX, ONNX_DATA),
)
"""Names of the files of any export, besides shards of weights."""


@contextmanager
def whole_folder(out: str | Path, overwrite: bool) -> Iterator[Path]:
    """Yields a new folder that takes the place of `out` at the end, if nothing was raised.

    Args:
      out: the destination. An earlier export there is replaced.
      overwrite: replace `out` even when it is a folder of something else.

    Yields:
      A folder to write into.

    Raises:
      ValueError: `out` is taken.
    """
    out = Path(out).absolute()
    require_free(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.name}.new-{os.getpid()}")
    new.mkdir()
    try:
        yield new
        _move_into_place(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def require_free(out: Path, overwrite: bool) -> None:
    """Raises a ValueError unless `out` may be written; arguments as for `whole_folder`."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder")
    if overwrite or not out.is_dir():
        return
    names = sorted(entry.name for entry in out.iterdir())
    foreign = [n for n in names if n not in EXPORTED and not SHARD_NAME.fullmatch(n)]
    if foreign:
        raise ValueError(
            f"{out} holds {foreign[0]!r}, which no export wrote: name another folder, or replace "
            "all of it with --overwrite"
        )


def _move_into_place(new: Path, out: Path) -> None:
    """Renames `new` to `out`; a folder that is there steps aside first and is deleted last."""
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    new.rename(out)
    if old.exists():
        shutil.rmtree(old)
