"""Weights of an encoder from its folder: all that the configuration asks for, and nothing else.

Nothing of the folder is run, and no pickle is trusted: .bin and .pt files are read as bare tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.modeling_utils import PreTrainedModel

from .registry import config_of, model_class_of, spec_of

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Weight files of a folder; each may be cut into shards, with an index beside them."""


def load_tower(kind: str, folder: str | Path, **options: Any) -> PreTrainedModel:
    """An encoder with its weights.

    Args:
      kind: of the encoder.
      folder: with config.json and model.safetensors (or pytorch_model.bin); or a name on the hub.
      options: of `from_pretrained`, such as `dtype` and `attn_implementation`.

    Raises:
      ValueError: the folder lacks a file, is of another kind, or its tensors are not exactly those
        of its configuration; the message names them.
      OSError: a hub name that cannot be fetched.
    """
    spec = spec_of(kind)
    config = config_of(kind, _stated_config(folder))
    if Path(folder).is_dir():
        _require_weights(folder)
    tower, found = model_class_of(kind, config).from_pretrained(
        folder,
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that the message below names them
        trust_remote_code=False,
        **options,
    )
    wrong = {
        "lacks": found["missing_keys"],
        "has too much": [k for k in found["unexpected_keys"] if not k.startswith(spec.ignored)],
        "has in other shapes": [_shapes(entry) for entry in found["mismatched_keys"]],
    }
    if said := "; ".join(f"{what} {_some(names)}" for what, names in wrong.items() if names):
        raise ValueError(
            f"the weights of {folder} are not those of its config.json, kind {kind!r}: the folder "
            f"{said}"
        )
    if hasattr(tower.config, "auto_map"):
        del tower.config.auto_map  # it names files that a folder of the whole model doesn't have
    return tower


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
    return AutoConfig.from_pretrained(folder).to_dict()


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


_TAILS = ("", ".index.json")
