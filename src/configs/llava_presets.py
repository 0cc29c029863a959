"""Published recipes of models with several encoders, as presets of llava.py.

    C=src/configs/llava.py
    codecvit llava train --workdir=runs/frozen --config=$C:preset=merv-frozen,data=tune.json
    codecvit llava train --workdir=runs/full1 --config=$C:preset=merv-full,stage=projector,data=...
    codecvit llava train --workdir=runs/full2 --config=$C:preset=merv-full,stage=sft,init=runs/full1

Towers come from the hub under their published names unless `towers` names folders:
`towers=dinov2=weights/dinov2;siglip=weights/siglip`. scripts/llava/{merv_frozen,merv_full,
videogpt_plus}.sh launch them; docs/merv_videogptplus.md says where they differ from what was
published, and why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Tower:
    """An encoder of a preset.

    Attributes:
      kind: of the registry.
      weights: name on the hub; "" where there is none, and a folder or file has to be named.
      frames: that it sees of a video.
      fields: further fields of its entry, as `config.model.encoders` writes them.
    """

    kind: str
    weights: str
    frames: int
    fields: str = ""

    def source(self, name: str, folder: str) -> str:
        """As `config.model.encoders` has it."""
        return f"{name}={self.kind}:{folder or self.weights}@{self.frames}{self.fields}"


@dataclasses.dataclass(frozen=True)
class Preset:
    """A recipe.

    Attributes:
      towers: by name.
      language_model: where its authors take it from.
      stages: name -> what the configuration of a new run of this stage has, over that of llava.py.
      template: of conversations in stages behind the first; None goes by the language model.
    """

    towers: Mapping[str, Tower]
    language_model: str
    stages: Mapping[str, Mapping[str, Any]]
    model: Mapping[str, Any]
    template: str | None = None


_MERV_TOWERS = {
    "languagebind": Tower("languagebind_video", "LanguageBind/LanguageBind_Video_merge", 16),
    "dinov2": Tower("dinov2", "facebook/dinov2-with-registers-large", 16, "?image_size=224"),
    "vivit": Tower("vivit", "google/vivit-b-16x2-kinetics400", 32),
    "siglip": Tower("siglip", "google/siglip-base-patch16-224", 16),
}
_LLAMA = "meta-llama/Llama-2-7b-hf"
_MERV_MODEL = {
    "projector": "3davg+linear",
    "pool": (16, 8, 8),
    "splice": "after_bos",
    "resize": "squash",
}
_FROZEN = {"vision_tower_lr": 0.0}
_MERV_SFT = {
    "batch_size": 128,
    "micro_batch_size": 8,
    "optim": {"lr": 2e-5, "weight_decay": 0.1, "schedule": "cosine", "warmup": 0.03, **_FROZEN},
    "data": {"max_length": 3072},  # 2,048 of text and 1,024 visual tokens
}
_MERV_CAPTIONS = {
    "batch_size": 256,
    "micro_batch_size": 16,
    "model": {"template": "plain"},
    # The language model learns too, from the first step on.
    "optim": {"lr": 1e-4, "language_model_lr": 1e-4, **_FROZEN},
    "data": {"max_length": 3072},
}


def _merv(towers: Mapping[str, Tower], **stages: Mapping[str, Any]) -> Preset:
    model = {**_MERV_MODEL, **({"fusion": "score"} if len(towers) > 1 else {})}
    return Preset(towers, _LLAMA, stages, model, template="pure")


_VIDEOGPT_TOWERS = {
    "image": Tower("clip", "openai/clip-vit-large-patch14-336", 16),
    "video": Tower("internvideo2", "", 16),
}
_VIDEOGPT_MODEL = {"projector": "mlp2x_gelu", "pool_first": False, "resize": "squash"}
_PHI = "microsoft/Phi-3-mini-4k-instruct"
_VIDEOGPT_CAPTIONS = {
    "batch_size": 256,
    "micro_batch_size": 16,
    "model": {"template": "plain"},
    "data": {"max_length": 4096},
}
_VIDEOGPT_LORA = {
    "batch_size": 128,
    "micro_batch_size": 8,
    "data": {"max_length": 4096},
}


def _videogpt_projector(name: str) -> Preset:
    towers = {name: _VIDEOGPT_TOWERS[name]}
    return Preset(towers, _PHI, {"projector": _VIDEOGPT_CAPTIONS}, _VIDEOGPT_MODEL)


PRESETS = {
    "merv-frozen": _merv(_MERV_TOWERS, sft=_MERV_SFT),
    "merv-full": _merv(_MERV_TOWERS, projector=_MERV_CAPTIONS, sft=_MERV_SFT),
    **{f"{name}-single": _merv({name: t}, sft=_MERV_SFT) for name, t in _MERV_TOWERS.items()},
    "videogpt-plus-image": _videogpt_projector("image"),
    "videogpt-plus-video": _videogpt_projector("video"),
    "videogpt-plus": Preset(
        _VIDEOGPT_TOWERS,
        _PHI,
        {"lora": _VIDEOGPT_LORA},
        {**_VIDEOGPT_MODEL, "fusion": "dual_stream", "pool_level": 2},
    ),
}


def stage_of(name: str, stage: str) -> str:
    """The stage that is meant: "" is the first of the preset.

    Raises:
      ValueError: there is no such preset, or it has no such stage.
    """
    if name not in PRESETS:
        raise ValueError(f"preset = {name!r} must be one of {', '.join(PRESETS)}")
    stages = PRESETS[name].stages
    if stage and stage not in stages:
        raise ValueError(f"stage = {stage!r} of preset {name!r} must be one of {', '.join(stages)}")
    return stage or next(iter(stages))


def apply_preset(config: ConfigDict, name: str, stage: str, towers: str, pool_level: int) -> None:
    """Puts a preset into a configuration.

    Args:
      config: of the stage, with all groups.
      name: of the preset.
      stage: as `stage_of` gave it.
      towers: `NAME=FOLDER;NAME=FOLDER`, in place of the names on the hub.
      pool_level: of presets that have one; 0 keeps theirs.

    Raises:
      ValueError: a tower is unknown or has no folder, or `pool_level` would do nothing.
    """
    preset = PRESETS[name]
    folders = _folders(towers)
    if strange := folders.keys() - preset.towers.keys():
        raise ValueError(
            f"towers = {towers}: preset {name!r} has no {', '.join(sorted(strange))}; it has "
            f"{', '.join(preset.towers)}"
        )
    _update(config, preset.stages[stage])
    if preset.template and config.model.get("template") != "plain":
        config.model.template = preset.template
    if config.init:
        if folders or pool_level:
            raise ValueError(f"towers and pool_level of preset {name!r} come from init")
        return
    model = dict(preset.model)
    if pool_level:
        if "pool_level" not in model:
            raise ValueError(f"pool_level = {pool_level}: preset {name!r} has none")
        model["pool_level"] = pool_level
    absent = [n for n, t in preset.towers.items() if not t.weights and n not in folders]
    if absent:
        raise ValueError(
            f"preset {name!r} needs towers={absent[0]}=FILE: there is no name on the hub for it"
        )
    model["encoders"] = tuple(t.source(n, folders.get(n, "")) for n, t in preset.towers.items())
    _update(config, {"model": model})
    config.model.language_model = config.model.language_model or preset.language_model


def _folders(towers: str) -> dict[str, str]:
    folders = {}
    for text in filter(None, towers.split(";")):
        name, _, folder = text.partition("=")
        if not folder or name in folders:
            raise ValueError(f"towers = {towers} must be NAME=FOLDER;NAME=FOLDER, each name once")
        folders[name] = folder
    return folders


def _update(config: ConfigDict, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _update(config[key], value)
        else:
            config[key] = value
