"""Reads an encoder from where training or an export left it: `codecvit.load`. Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ..models.config import ViTConfig
from ..models.encoder import Encoder
from .card import last_metrics
from .names import from_hf
from .weights import DTYPES, WEIGHTS, folder_path, read_json, read_weights

MODEL_TYPE = "onevision_encoder"
IMPORTED = "imported"  # key of a checkpoint's metadata: the `Origin` of an imported one


@dataclasses.dataclass(frozen=True)
class Origin:
    """What an export needs and our encoder does not: taken over from the folder weights came from.

    Attributes:
      dtype: of the stored weights, a name of DTYPES.
      image_size: side in pixels that the image processor makes.
      rope_temporal_size: most frames of a plain video in PyTorch; None for any number.
    """

    dtype: str = "float32"
    image_size: int = 224
    rope_temporal_size: int | None = 64


class Checkpoint(NamedTuple):
    """An encoder as it was read.

    Attributes:
      params: the parameter tree, float32.
      config: sizes of the encoder.
      training: the run's resolved configuration; None for what no run of ours trained.
      metrics: the run's last ones and their step; empty where there is no metrics.jsonl.
      origin: of a Hugging Face folder or an import of one; else the defaults.
    """

    params: dict[str, Any]
    config: ViTConfig
    training: dict[str, Any] | None = None
    metrics: Mapping[str, float] = MappingProxyType({})
    origin: Origin = Origin()


def load(path: str | Path, *, ema: bool = False) -> Encoder:
    """Opens a trained encoder.

    Args:
      path: a work directory of training (its newest checkpoint), one checkpoint
        WORKDIR/checkpoints/STEP or one that `codecvit import` wrote, or a Hugging Face folder of
        this project or of the published onevision-encoder.
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
      Parameters, sizes and where they come from.

    Raises:
      ValueError: as for `load`.
    """
    path = folder_path(path)
    if not path.is_dir():
        raise ValueError(f"{path} is no folder: {_WANTED}")
    settings = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if "model_type" in settings:
        if ema:
            raise ValueError(f"{path} is an exported folder: it holds no moving average")
        return _read_folder(path, settings)
    if (path / "checkpoints").is_dir() or (path / "encoder").is_dir():
        # Imported here: an exported folder opens without Orbax.
        from ..trainers.checkpoint_reading import find_checkpoint, restore_params
        from ..trainers.pretrain_config import model_config

        params, metadata = restore_params(path, ema=ema)
        model = metadata["config"]["model"]
        if "vision" in model:  # an image-text run
            if model["tower"] != "codecvit":
                raise ValueError(
                    f"{path} holds an image-text model whose image tower is OpenVision's: "
                    "codecvit.load_clip opens it"
                )
            model = model["vision"]
        config = model_config(model)
        # How the run spread its work was a matter of its machine, not of the encoder.
        config = dataclasses.replace(config, remat="none", attention_impl="auto")
        if IMPORTED in metadata:
            fields = {field.name for field in dataclasses.fields(Origin)}
            kept = {key: value for key, value in metadata[IMPORTED].items() if key in fields}
            return Checkpoint(params, config, origin=Origin(**kept))
        metrics = last_metrics(find_checkpoint(path))
        return Checkpoint(params, config, metadata["config"], metrics)
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise ValueError(f"{path} holds no encoder (found: {found}): {_WANTED}")


_WANTED = (
    "expected a work directory of training (config.json and checkpoints/), one of its checkpoints "
    f"(checkpoints/STEP), or a Hugging Face folder (config.json with model_type {MODEL_TYPE!r} "
    f"and {WEIGHTS})"
)


def config_to_hf(config: ViTConfig, origin: Origin) -> dict[str, Any]:
    """Our sizes under the field names of the published configuration."""
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_channels": 3,
        "image_size": origin.image_size,
        "patch_size": config.patch,
        "hidden_act": "gelu",
        "layer_norm_eps": config.layer_norm_eps,
        "layer_norm_type": "layer_norm",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "rope_theta": config.rope_theta,
        "rope_temporal_size": origin.rope_temporal_size,
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


def _read_folder(folder: Path, settings: dict[str, Any]) -> Checkpoint:
    config = config_from_hf(settings, folder)
    tensors = read_weights(folder)
    try:
        params = from_hf(tensors, config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    defaults = Origin()
    origin = Origin(
        stored_dtype(tensors),
        settings.get("image_size", defaults.image_size),
        settings.get("rope_temporal_size", defaults.rope_temporal_size),
    )
    return Checkpoint(params, config, origin=origin)


def stored_dtype(tensors: Mapping[str, np.ndarray]) -> str:
    """The name of the one dtype of all tensors; float32, which holds the others, for a mixture."""
    found = {tensor.dtype for tensor in tensors.values()}
    return next((n for n, dtype in DTYPES.items() if found == {np.dtype(dtype)}), "float32")
