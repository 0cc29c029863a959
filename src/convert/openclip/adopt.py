"""An image-text folder of others, or of ours, as a checkpoint: behind `codecvit import`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import __version__
from ...models import captioning, config, openvision, text
from ...models.config import TransformerConfig, ViTConfig
from ..load import IMPORTED
from ..names import flatten
from .read import ClipCheckpoint, read_clip
from .settings import Parts


def import_clip(folder: str | Path, out: str | Path) -> ClipCheckpoint:
    """Writes an image-text model as a checkpoint.

    `codecvit.load_clip` opens it, `config.init` starts a run from it, and `codecvit export` writes
    its tensors back byte by byte.

    Args:
      folder: as for `read_clip`.
      out: the checkpoint, a folder that does not exist yet.

    Returns:
      What was read.

    Raises:
      ValueError: `folder` is no such folder; a tensor is missing, unknown or of another shape or
        dtype, and the message names it; `out` exists.
    """
    from ...trainers.checkpoints import save_params

    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} exists: name another folder, or remove it")
    checkpoint = read_clip(folder)
    rest: dict[str, Any] = {
        name: leaf
        for name, leaf in flatten({"params": checkpoint.params}).items()
        if not name.startswith("params/encoder/")
    }
    rest |= {f"{IMPORTED}/{name}": tensor for name, tensor in checkpoint.kept.items()}
    metadata = {
        "config": {"model": checkpoint.parts.settings()},
        IMPORTED: dataclasses.asdict(checkpoint.origin),
        "version": __version__,
    }
    save_params(out, checkpoint.params["encoder"], metadata, rest)
    return checkpoint


def training_arguments(parts: Parts, out: str | Path) -> str:
    """What a command of `codecvit train-pairs` says to continue with a model.

    Args:
      parts: sizes of the model.
      out: the checkpoint.

    Returns:
      Arguments of the configuration file and flags, with SIZE for sizes of no name.
    """
    ours = isinstance(parts.vision, ViTConfig)
    img = _size(parts.vision, config.SIZES if ours else openvision.SIZES)
    arguments = [f"img={img}/{parts.vision.patch}"]
    taken = []
    if ours:
        arguments.append("tower=codecvit")
    if parts.text is not None:
        arguments.append(f"txt={_size(parts.text, text.SIZES)}")
        taken += ["image_head", "text", "logit_scale"]
    if parts.bias:
        arguments.append("loss=sigmoid")
        taken.append("logit_bias")
    if parts.decoder is not None:
        arguments.append(f"decoder={_size(parts.decoder, captioning.SIZES)}")
        taken.append("decoder")
    names = "".join(f"'{name}'," for name in taken)
    return f'{",".join(arguments)},init={out} --config.init.parts="({names})"'


def _size(tower: TransformerConfig, sizes: Mapping[str, Mapping[str, int]]) -> str:
    fields = ("width", "depth", "num_heads", "mlp_dim")
    stated = {field: getattr(tower, field) for field in fields}
    return next((name for name, size in sizes.items() if size == stated), "SIZE")
