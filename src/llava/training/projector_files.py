"""Projectors from files: of this package, of LLaVA, VideoGPT+ and transformers.

`--init-projector FILE` fills the projector; `image=FILE,video=FILE` those of a model's encoders by
name, each perhaps trained alone. A file may be a run's folder, which means its newest checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from .checkpoints import latest_checkpoint, load_trained, read_trained

OWN = "projector."
PREFIX = re.compile(r"(?:model\.)?(?:projector|(?:image_)?mm_projector|multi_modal_projector)\.")
"""What projectors are called in files: ours, LLaVA's and VideoGPT+'s, and that of transformers."""

ONE = re.compile(r"encoders\.([^.]+)\.")
"""How the projector of one of several encoders begins, in our files."""

HF_LAYERS = {"linear_1": "0", "linear_2": "2"}
FIELD = "config.init_projector"


def load_projectors(projector: nn.Module, given: str) -> None:
    """Fills a projector, or those of some encoders.

    Args:
      projector: of the model.
      given: FILE, or NAME=FILE,NAME=FILE.

    Raises:
      ValueError: a file cannot be read, a name is that of no encoder, or a tensor is missing,
        strange or of another shape.
    """
    parts = [part.partition("=") for part in given.split(",")]
    if not any(equals for _, equals, _ in parts):
        load_projector(projector, Path(given))
        return
    encoders = dict(getattr(projector, "encoders", {}))
    names = [name for name, _, _ in parts]
    wrong = [name for name in names if name not in encoders or names.count(name) > 1]
    if wrong or not all(file for _, _, file in parts):
        raise ValueError(
            f"{FIELD} = {given!r} must be a file, or NAME=FILE,NAME=FILE with encoders of the "
            f"model: {', '.join(encoders) or 'it has one, without a name'}"
        )
    for name, _, file in parts:
        load_projector(encoders[name], Path(file), lone=True)


def load_projector(projector: nn.Module, file: Path, lone: bool = False) -> None:
    """Fills a projector from a file, whole: every tensor on either side has its counterpart.

    Args:
      projector: of the model, or of one of its encoders.
      file: safetensors, or a .bin of tensors alone, or the folder of a run that trains a projector.
        Names: ours, with or without "projector."; LLaVA's `mm_projector.*`, VideoGPT+'s
        `image_mm_projector.*`; `multi_modal_projector.linear_1` of transformers.
      lone: the file may be of a model whose one encoder has a name; the name doesn't matter.

    Raises:
      ValueError: the file cannot be read, or a tensor is missing, strange or of another shape.
    """
    tensors = _read(file)
    if lone:
        found = {m[1] for name in tensors if (m := ONE.match(PREFIX.sub("", name, count=1)))}
        if len(found) > 1:
            raise ValueError(
                f"{FIELD}: {file} has the projectors of {', '.join(sorted(found))}: name a file "
                "with one"
            )
        tensors = {ONE.sub("", PREFIX.sub("", n, count=1)): x for n, x in tensors.items()}
    own = dict(projector.named_parameters())
    named = {_own_name(name, own): tensor for name, tensor in tensors.items()}
    if len(named) < len(tensors):
        raise ValueError(f"{FIELD}: several tensors of {file} have the same place")
    load_trained(own, named, f"{FIELD}: {file}")


def _read(file: Path) -> Mapping[str, torch.Tensor]:
    if file.is_dir():
        folder = latest_checkpoint(file)
        if folder is None:
            raise ValueError(f"{FIELD}: {file} is no run with a checkpoint: name a file, or a run")
        trained = read_trained(folder)
        return {name: x for name, x in trained.items() if name.startswith(OWN)}
    if not file.is_file():
        raise ValueError(f"{FIELD}: {file} does not exist")
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _own_name(name: str, own: Iterable[str]) -> str:
    """Our name of a tensor: `mm_projector.0.weight` and `projector.mlp.0.weight` are one."""
    bare = PREFIX.sub("", name, count=1)
    if bare in own:
        return bare
    layer, _, rest = bare.rpartition(".")
    return f"mlp.{HF_LAYERS.get(layer, layer or '0')}.{rest}"
