"""Weights of an encoder from its folder: all that the configuration asks for, and nothing else.

Nothing of the folder is run, and no pickle is trusted: .bin and .pt files are read as bare tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .registry import build_tower, config_of, model_class_of, spec_of, without_pooler
from .spec import EncoderSpec

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Weight files of a folder; each may be cut into shards, with an index beside them."""

_TAILS = ("", ".index.json")


def load_tower(kind: str, folder: str | Path, **options: Any) -> PreTrainedModel:
    """An encoder with its weights.

    Args:
      kind: of the encoder.
      folder: with config.json and model.safetensors (or pytorch_model.bin); or a name on the hub;
        or, of kinds that are published so, a checkpoint file.
      options: of `from_pretrained`, such as `dtype` and `attn_implementation`.

    Raises:
      ValueError: the folder lacks a file, is of another kind, or its tensors are not exactly those
        of its configuration; the message names them.
      OSError: a hub name that cannot be fetched.
    """
    spec = spec_of(kind)
    if Path(folder).is_file():
        return _load_file(kind, Path(folder), **options)
    config = config_of(kind, _stated_config(folder))
    if Path(folder).is_dir():
        _require_weights(folder)
    model = model_class_of(kind, config)
    tower, found = model.from_pretrained(
        folder,
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that the message below names them
        **without_pooler(model),
        **options,
    )
    _refuse(
        folder,
        found["missing_keys"],
        [name for name in found["unexpected_keys"] if not _ignored(spec, name)],
        [_shapes(entry) for entry in found["mismatched_keys"]],
    )
    if hasattr(tower.config, "auto_map"):
        del tower.config.auto_map  # it names files that a folder of the whole model doesn't have
    return tower


def _load_file(kind: str, path: Path, **options: Any) -> PreTrainedModel:
    """The encoder of a published checkpoint file, of the configuration that goes without saying."""
    spec = spec_of(kind)
    if spec.published_tensors is None:
        raise ValueError(f"{path} is a file: an encoder of kind {kind!r} is read from its folder")
    stored = spec.published_tensors(path)
    stored = {name: x for name, x in stored.items() if not _ignored(spec, name)}
    with torch.device("meta"):  # drawing a billion numbers would take a minute
        tower = build_tower(kind, spec.config_class(), **options)
    own = tower.state_dict()
    both = own.keys() & stored.keys()
    _refuse(
        path,
        own.keys() - stored.keys(),
        stored.keys() - own.keys(),
        [
            _shapes((n, stored[n].shape, own[n].shape))
            for n in both
            if stored[n].shape != own[n].shape
        ],
    )
    stored = {name: x.to(own[name].dtype) for name, x in stored.items()}
    tower.load_state_dict(stored, assign=True)
    return tower.eval()


def _ignored(spec: EncoderSpec, name: str) -> bool:
    """Whether a stored tensor may be there without being a part of the encoder."""
    # Old files hold the numbers 0, 1, 2, ... by which positions were once looked up.
    return name.startswith(spec.ignored) or name.endswith("position_ids")


def _refuse(folder: str | Path, missing: Any, extra: Any, misshapen: Any) -> None:
    """Raises ValueError that names what of an encoder's tensors is not as it must be."""
    wrong = {"lacks": missing, "has too much:": extra, "has in another shape:": misshapen}
    if said := "; ".join(f"{what} {_some(names)}" for what, names in wrong.items() if names):
        raise ValueError(
            f"the weights of {folder} are not those of the encoder's configuration: it {said}"
        )


def pixel_statistics(folder: str | Path) -> dict[str, list[float]]:
    """`image_mean` and `image_std` of the folder's preprocessor_config.json; {} without one."""
    path = Path(folder, "preprocessor_config.json")
    if not path.is_file():
        return {}
    processor = json.loads(path.read_text())
    return {name: processor[name] for name in ("image_mean", "image_std") if name in processor}


def _stated_config(folder: str | Path) -> dict[str, Any]:
    path = Path(folder, "config.json")
    if path.is_file():
        return json.loads(path.read_text())
    if Path(folder).exists() or Path(folder).is_absolute():
        raise ValueError(f"{folder} has no config.json: name the folder of an encoder")
    try:
        return PretrainedConfig.get_config_dict(folder)[0]
    except OSError as error:
        raise OSError(
            f"{folder} is no folder here, and no model of the hub that could be fetched"
        ) from error


def _require_weights(folder: str | Path) -> None:
    if not any(Path(folder, name + tail).is_file() for name in WEIGHTS for tail in _TAILS):
        raise ValueError(f"{folder} has no weights: it needs {' or '.join(WEIGHTS)}")


def _shapes(entry: Any) -> str:
    if isinstance(entry, str):
        return entry
    name, stored, wanted = entry
    return f"{name} {list(stored)} for {list(wanted)}"


def _some(names: Any, most: int = 5) -> str:
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
