"""Reads an encoder from where training or an export left it: `codecvit.load`. Needs no torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from ..models.config import ViTConfig
from ..models.encoder import Encoder
from .names import from_hf

MODEL_TYPE = "onevision_encoder"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Checkpoint(NamedTuple):
    """An encoder as it was read: parameters, sizes and, of a training run, its configuration."""

    params: dict[str, Any]
    config: ViTConfig
    training: dict[str, Any] | None


def load(path: str | Path, *, ema: bool = False) -> Encoder:
    """Opens a trained encoder.

    Args:
      path: a work directory of training (its newest checkpoint), one checkpoint
        WORKDIR/checkpoints/STEP, or a Hugging Face folder of this project or of the published
        onevision-encoder.
      ema: of a checkpoint, the moving average of the parameters (config.ema) instead of them.

    Returns:
      The encoder, a function from patch sequences to tokens and pooled embedding.

    Raises:
      ValueError: `path` is none of these, or its weights don't fit its configuration.
    """
    checkpoint = read_checkpoint(path, ema=ema)
    return Encoder(checkpoint.config, checkpoint.params)


def read_checkpoint(path: str | Path, *, ema: bool = False) -> Checkpoint:
    """The parameters behind `load`, without building an encoder.

    Args:
      path, ema: as for `load`.

    Returns:
      float32 numpy parameters and the sizes of the encoder; the run's resolved configuration, None
      for a Hugging Face folder.

    Raises:
      ValueError: as for `load`.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path} is no folder: {_WANTED}")
    settings = _read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if "model_type" in settings:
        if ema:
            raise ValueError(f"{path} is an exported folder: it holds no moving average")
        config = config_from_hf(settings, path)
        return Checkpoint(_read_weights(path, config), config, None)
    if (path / "checkpoints").is_dir() or (path / "encoder").is_dir():
        # Imported here: an exported folder opens without Orbax.
        from ..trainers.checkpoints import restore_params
        from ..trainers.config import model_config

        params, metadata = restore_params(path, ema=ema)
        config = model_config(metadata["config"]["model"])
        # How the run spread its work was a matter of its machine, not of the encoder.
        config = dataclasses.replace(config, remat="none", attention_impl="auto")
        return Checkpoint(params, config, metadata["config"])
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise ValueError(f"{path} holds no encoder (found: {found}): {_WANTED}")


_WANTED = (
    "expected a work directory of training (config.json and checkpoints/), one of its checkpoints "
    f"(checkpoints/STEP), or a Hugging Face folder (config.json with model_type {MODEL_TYPE!r} "
    f"and {WEIGHTS})"
)


def config_to_hf(config: ViTConfig, image_size: int) -> dict[str, Any]:
    """Our sizes under the field names of the published configuration."""
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_channels": 3,
        "image_size": image_size,
        "patch_size": config.patch,
        "hidden_act": "gelu",
        "layer_norm_eps": config.layer_norm_eps,
        "layer_norm_type": "layer_norm",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "rope_theta": config.rope_theta,
        "rope_temporal_size": 64,
        "use_head": True,
    }


def config_from_hf(settings: dict[str, Any], path: Path) -> ViTConfig:
    """The published configuration as ours.

    Args:
      settings: what config.json says.
      path: its folder, for messages.

    Returns:
      Our configuration.

    Raises:
      ValueError: a field is missing, or asks for what our encoder does not compute.
    """
    fixed = {
        "model_type": MODEL_TYPE,
        "num_channels": 3,
        "hidden_act": "gelu",
        "layer_norm_type": "layer_norm",
        "use_head": True,
    }
    for field, value in fixed.items():
        # The published defaults; a file may leave a field out.
        if settings.get(field, value) != value:
            found = f"{path / 'config.json'}: {field} = {settings[field]!r}"
            raise ValueError(f"{found}, only {value!r} is supported")
    required = {
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "mlp_dim": "intermediate_size",
        "patch": "patch_size",
    }
    for field in required.values():
        if not isinstance(settings.get(field), int):
            raise ValueError(
                f"{path / 'config.json'}: {field} = {settings.get(field)!r} must be a whole number"
            )
    return ViTConfig(
        **{ours: settings[theirs] for ours, theirs in required.items()},
        rope_theta=settings.get("rope_theta", 10000.0),
        layer_norm_eps=settings.get("layer_norm_eps", 1e-6),
    )


def _read_weights(folder: Path, config: ViTConfig) -> dict[str, Any]:
    if (folder / INDEX).is_file():
        weight_map = _read_json(folder / INDEX)["weight_map"]
        shards = sorted(set(weight_map.values()))
        for shard in shards:
            if Path(shard).name != shard:
                raise ValueError(f"{folder / INDEX}: weight file {shard!r} is no plain file name")
    elif (folder / WEIGHTS).is_file():
        shards = [WEIGHTS]
    else:
        raise ValueError(f"{folder} has a config.json but neither {WEIGHTS} nor {INDEX}")
    tensors: dict[str, np.ndarray] = {}
    for shard in shards:
        tensors |= read_safetensors(folder / shard)
    try:
        return from_hf(tensors, config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file; bfloat16, which numpy does not know, as float32.

    Raises:
      ValueError: the file is missing, damaged, or holds a type that is no float.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        entries = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _FLOATS:
            raise ValueError(
                f"{path}: tensor {name!r} is {entry['dtype']}, not one of {[*_FLOATS]}"
            )
        data = np.frombuffer(entry["data"], _FLOATS[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = _widen(data) if entry["dtype"] == "BF16" else data
    return tensors


_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def _widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns -> float32: they are its upper halves."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, found {type(content).__name__}")
    return content
