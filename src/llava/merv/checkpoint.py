"""What a checkpoint folder of MERV says and holds, in the words of this package.

A folder of github.com/princetonvisualai/merv is config.json, whose `model` names encoders, language
model, projector and fusion, and checkpoints/latest-checkpoint.pt, whose `model` has the tensors of
`projectors`, `feature_fusion` and `llm_backbone`; the encoders are frozen and not in it. Old ones
call the first two `projector` (of a single encoder) and `adapter`.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .published import CHECKPOINT, CONFIG

IMAGE_SIZE = 224
"""Of all its encoders, in pixels."""

Tensors = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """An encoder, as an id of MERV says it.

    Attributes:
      name: short, for parameters and figures.
      kind: of `encoders.registry`.
      select_layer: which hidden state MERV reads.
      tubelet: frames of a time step.
    """

    name: str
    kind: str
    select_layer: int | str = -2
    tubelet: int = 1


BACKBONES = {
    "languagebind-video-noclass": Backbone("languagebind", "languagebind_video"),
    "dinov2-video-all-tokens": Backbone("dinov2", "dinov2"),
    "vivit-google-b-all-no-cls-16frames": Backbone("vivit", "vivit", "norm", 2),
    "siglip-vit-b16-224px-all-no-cls": Backbone("siglip", "siglip"),
}
"""By MERV's id. Its other ids are of other tokens of the same models, or of Hiera."""

TEMPLATES = {
    "llama2-7b-pure": "pure",
    "llama2-13b-pure": "pure",
    "vicuna-v15-7b": "vicuna",
    "vicuna-v15-13b": "vicuna",
    "llama3.1-8b-chat": "llama3",
}
"""By MERV's id of a language model, where ours is the text that it was trained on."""

FUSIONS = {
    "cross_attention_avg_lq": "mha_compat",
    "first": "first",
    "concat": "concat",
    "concat_channel": "concat_channel",
    "concat_channel_ln": "concat_channel_ln",
}
_POOLS = {"3davg": "3davg", "avg": "3davg", "3dconv": "3dconv", "attntv": "attentive"}
_LAST = {"linear": "linear", "gelu-mlp": "mlp2x_gelu"}
_CONV = {"conv.conv": "convolution_pooling.0"}
_ATTENTIVE = {
    "pool.queries": "query_tokens",
    "pool.norm1": "cross_attn.norm1",
    "pool.q": "cross_attn.xattn.q",
    "pool.kv": "cross_attn.xattn.kv",
    "pool.out": "cross_attn.xattn.proj",
    "pool.norm2": "cross_attn.norm2",
    "pool.mlp.0": "cross_attn.mlp.fc1",
    "pool.mlp.2": "cross_attn.mlp.fc2",
}


@dataclasses.dataclass(frozen=True)
class MervConfig:
    """`model` of config.json, as far as it decides what the tensors mean.

    Attributes:
      backbones: encoders, in the order of the projectors.
      frames: that each sees of a video.
      language_model: MERV's id of it.
      projector, pool, fusion: as in `LlavaConfig`.
    """

    backbones: tuple[Backbone, ...]
    frames: tuple[int, ...]
    language_model: str
    projector: str
    pool: tuple[int, int, int]
    fusion: str

    @classmethod
    def read(cls, folder: Path) -> MervConfig:
        """Of a checkpoint's folder.

        Raises:
          ValueError: the file is missing or no such configuration, or the model has a part that is
            not supported here; the message names field and value.
        """
        path = folder / CONFIG
        if not path.is_file() or not isinstance(json.loads(path.read_text()).get("model"), dict):
            raise ValueError(f"{path} is no configuration of MERV: it has no `model`")
        given = json.loads(path.read_text())["model"]
        wanted = ("video_backbone_ids", "num_frames", "llm_backbone_id", "arch_specifier")
        wanted += ("projector_token_length", "feature_fusion")
        if absent := [name for name in wanted if name not in given]:
            raise ValueError(f"{path}: model has no {', '.join(absent)}")
        ids, frames = given["video_backbone_ids"], given["num_frames"]
        frames = [frames] * len(ids) if isinstance(frames, int) else frames
        if len(frames) != len(ids):
            raise ValueError(f"{path}: num_frames = {frames} of {len(ids)} video_backbone_ids")
        backbones = tuple(_known(BACKBONES, i, "video_backbone_ids", path) for i in ids)
        steps = [n // b.tubelet for n, b in zip(frames, backbones, strict=True)]
        projector, cells_t = _architecture(given["arch_specifier"], steps, path)
        side = round(given["projector_token_length"] ** 0.5)
        if side**2 != given["projector_token_length"]:
            raise ValueError(
                f"{path}: projector_token_length = {given['projector_token_length']} is no square"
            )
        return cls(
            backbones,
            tuple(frames),
            given["llm_backbone_id"],
            projector,
            (cells_t, side, side),
            _known(FUSIONS, given["feature_fusion"], "feature_fusion", path),
        )

    def fields(self) -> dict[str, Any]:
        """Of `LlavaConfig`, but for the encoders and what `--template` may say."""
        return {
            "projector": self.projector,
            "pool": self.pool,
            "fusion": self.fusion,
            "splice": "after_bos",
        }

    def entry(self, number: int) -> dict[str, Any]:
        """Of `LlavaConfig.encoders`, what is special about the encoder with this number."""
        backbone = self.backbones[number]
        return {
            "frames": self.frames[number],
            "select_layer": backbone.select_layer,
            "image_size": IMAGE_SIZE,
            # MERV gives LanguageBind another field of view than the others; here all see one.
            "resize": "squash",
        }


def _known(table: Mapping[str, Any], key: str, field: str, path: Path) -> Any:
    if key not in table:
        raise ValueError(
            f"{path}: {field} = {key!r} is not supported: there are {', '.join(table)}"
        )
    return table[key]


def _architecture(specifier: str, steps: list[int], path: Path) -> tuple[str, int]:
    """(our projector, cells in time) of MERV's `arch_specifier`."""
    *parts, last = specifier.split("+")
    parts = [part for part in parts if part != "no-align"]
    factors = [int(n) for part in parts for n in re.findall(r"^frame(\d+)$", part)]
    kinds = [_POOLS[part] for part in parts if part in _POOLS]
    if last not in _LAST or len(kinds) > 1 or len(kinds) + len(factors) != len(parts):
        raise ValueError(
            f"{path}: arch_specifier = {specifier!r} is not supported: there are {list(_POOLS)} "
            f"and frame<k> before {list(_LAST)}"
        )
    if len(set(steps)) > 1:
        raise ValueError(f"{path}: the encoders make {steps} time steps, which have to be equal")
    cells = steps[0] // (factors[0] if factors else 1)
    return "+".join([*kinds, _LAST[last]]), cells


def read_tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """`projectors`, `feature_fusion` and `llm_backbone` of a checkpoint's folder.

    Nothing is unpickled but tensors, and of a file with an optimiser's state only these are read.

    Raises:
      ValueError: the file is missing, holds other things than tensors, or lacks a part.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise ValueError(f"{folder} has no {CHECKPOINT}: it is no checkpoint of MERV")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as bare tensors: {error}") from error
    model = dict(stored.get("model") or {}) if isinstance(stored, dict) else {}
    if "projector" in model:
        model["projectors"] = {f"0.{n}": t for n, t in model.pop("projector").items()}
    if "adapter" in model:
        model["feature_fusion"] = model.pop("adapter")
    parts = ("projectors", "feature_fusion", "llm_backbone")
    if extra := model.keys() - {*parts}:
        raise ValueError(f"{path}: model has too much: {', '.join(sorted(extra))}")
    if absent := {"projectors", "llm_backbone"} - model.keys():
        raise ValueError(
            f"{path}: model lacks {', '.join(sorted(absent))}: a stage that trains "
            "projectors alone leaves no model to import"
        )
    return {part: dict(model.get(part, {})) for part in parts}


def projector_name(own: str, projector: str) -> str:
    """What MERV calls a projector's tensor.

    Args:
      own: name in `projectors.Projector`.
      projector: as in `LlavaConfig`.
    """
    kind, _, last = projector.rpartition("+")
    stem, _, leaf = own.rpartition(".")
    if stem.startswith("mlp."):
        number = "" if last == "linear" else f"{stem.removeprefix('mlp.')}."
        # A pooling projector holds one that does not pool.
        return f"{'projector.' if kind else ''}projector.{number}{leaf}"
    table = {**_CONV, **_ATTENTIVE}
    return table[own] if own in table else f"{table[stem]}.{leaf}"


@torch.no_grad()
def fill(module: nn.Module, tensors: Tensors, names: Mapping[str, str], what: str) -> None:
    """Fills a module, all of it, with all of the tensors.

    Args:
      module: with its own parameters.
      tensors: by their stored names.
      names: own name -> stored name.
      what: of the checkpoint, for messages.

    Raises:
      ValueError: a tensor is missing, has no place, or is of another shape; the message names it.
    """
    wanted = set(names.values())
    own = module.state_dict()
    for said, odd in (
        ("lacks", wanted - tensors.keys()),
        ("has too much:", tensors.keys() - wanted),
    ):
        if odd:
            raise ValueError(f"{what} {said} {', '.join(sorted(odd)[:8])} ({len(odd)} tensors)")
    for name, stored in names.items():
        tensor = tensors[stored]
        if name.endswith("pool.queries"):
            tensor = tensor.flatten(0, -2)
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{what}: {stored} is {list(tensors[stored].shape)}, and has to be "
                f"{list(own[name].shape)}: is the encoder, or the language model, the right one?"
            )
        own[name].copy_(tensor)
