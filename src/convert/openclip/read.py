"""Reads an image-text model from where training, an export or OpenVision left it.

A checkpoint of ours; a folder for OpenCLIP, as OpenVision publishes its weights; our own Hugging
Face folder; OpenVision's JAX weights.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import safetensors

from ...data.tokenizers import Tokenizer, open_tokenizer
from ..card import last_metrics
from ..folder import DECODER, IMAGE_TEXT, OPENCLIP_CONFIG, OPENCLIP_WEIGHTS
from ..load import IMPORTED, read_checkpoint, stored_dtype
from ..names import insert
from ..weights import WEIGHTS, folder_path, read_json, read_safetensors, read_weights
from .hf_config import MODEL_TYPE, from_hf_config
from .names import POSITIONS, PROJECTION, from_jax, from_openclip, position_code
from .settings import ClipOrigin, Parts, from_openclip_config
from .tokenizer_files import open_beside, tokenizer_file

_BIN = "open_clip_pytorch_model.bin"
# Published tables were computed by other libraries, in float32.
_POSITION_TOLERANCE = 1e-4


class ClipCheckpoint(NamedTuple):
    """An image-text model as it was read.

    Attributes:
      params: the tree of `models.clip`, float32.
      parts: sizes of the model.
      origin: what a folder says beside them.
      kept: tensors of an OpenCLIP folder that our tree has no place for: its position code, and
        the projection of an image tower without texts.
      training: the run's resolved configuration; None for what no run of ours trained.
      metrics: the run's last ones and their step.
    """

    params: dict[str, Any]
    parts: Parts
    origin: ClipOrigin
    kept: Mapping[str, np.ndarray] = MappingProxyType({})
    training: dict[str, Any] | None = None
    metrics: Mapping[str, float] = MappingProxyType({})

    def tokenizer(self, file: str | Path | None = None) -> Tokenizer | None:
        """The tokenizer of the model.

        Args:
          file: its place; by default the one that the run or the folder names.

        Returns:
          The tokenizer; None for a model without texts.

        Raises:
          ValueError: its place is not known, or it cannot be opened.
        """
        if self.parts.text is None and self.parts.decoder is None:
            return None
        known = file or self.origin.tokenizer
        if known is None:
            raise ValueError("the model's tokenizer is not known: name its file")
        # A run opened its file as it stands; beside those of folders lies what they call begin and
        # end.
        return open_tokenizer(known) if self.training else open_beside(Path(known))


def is_clip(path: str | Path) -> bool:
    """Whether a path holds an image-text model, rather than an encoder or nothing."""
    path = folder_path(path)
    if (path / OPENCLIP_CONFIG).is_file() or (path / IMAGE_TEXT).is_file():
        return True
    if (path / "config.json").is_file():
        settings = read_json(path / "config.json")
        if "model_type" in settings:
            return settings["model_type"] == MODEL_TYPE
    if (path / "checkpoints").is_dir() or (path / "encoder").is_dir():
        from ...trainers.checkpoint_reading import read_metadata

        return "vision" in read_metadata(path)["config"].get("model", {})
    return _orbax_step(path) is not None


def read_clip(path: str | Path, *, ema: bool = False) -> ClipCheckpoint:
    """An image-text model, with its parameters.

    Args:
      path: a work directory or checkpoint of ours; a folder of `codecvit export`; a folder of
        OpenVision's weights for OpenCLIP; or its JAX weights, `jax_orbax_weight`.
      ema: of a checkpoint, the moving average of the parameters instead of them.

    Returns:
      Parameters, sizes and where they come from.

    Raises:
      ValueError: `path` is none of these, or a tensor is missing, unknown or of another shape.
    """
    path = folder_path(path)
    if not path.is_dir():
        raise ValueError(f"{path} is no folder: {_WANTED}")
    checkpoint = (path / "checkpoints").is_dir() or (path / "encoder").is_dir()
    if ema and not checkpoint:
        raise ValueError(f"{path} is no checkpoint of a run: it holds no moving average")
    if (path / OPENCLIP_CONFIG).is_file() and _weight_file(path) is not None:
        return _read_openclip(path)
    settings = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if settings.get("model_type") == MODEL_TYPE:
        return _read_hf(path, settings)
    if (path / IMAGE_TEXT).is_file():
        return _read_with_our_encoder(path)
    if checkpoint:
        return _read_checkpoint(path, ema)
    step = _orbax_step(path)
    if step is not None:
        return _read_jax(step)
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise ValueError(f"{path} holds no image-text model (found: {found}): {_WANTED}")


_WANTED = (
    "expected a work directory of image-text training or one of its checkpoints, a folder of "
    f"`codecvit export`, or one of OpenVision's ({OPENCLIP_CONFIG} with {OPENCLIP_WEIGHTS} or "
    f"{_BIN}, or jax_orbax_weight)"
)


def _read_checkpoint(path: Path, ema: bool) -> ClipCheckpoint:
    from ...trainers.checkpoint_reading import find_checkpoint, restore_params, restore_rest

    encoder, metadata = restore_params(path, ema=ema)
    model = metadata["config"]["model"]
    if "vision" not in model:
        raise ValueError(f"{path} holds an encoder alone: codecvit.load opens it")
    parts = Parts.from_settings(model)
    params: dict[str, Any] = {"encoder": encoder}
    for name, leaf in restore_rest(path, "params/").items():
        insert(params, name, leaf)
    if IMPORTED in metadata:
        origin = ClipOrigin(**metadata[IMPORTED])
        return ClipCheckpoint(params, parts, origin, restore_rest(path, f"{IMPORTED}/"))
    training = metadata["config"]
    sizes = [source["image_size"] for source in training.get("sources", {}).values()]
    origin = ClipOrigin(
        image_size=max(sizes, default=224),
        resize_mode="shortest",  # as the run's own evaluations see images
        interpolation="bicubic",
        tokenizer=training.get("tokenizer"),
    )
    metrics = last_metrics(find_checkpoint(path))
    return ClipCheckpoint(params, parts, origin, training=training, metrics=metrics)


def _read_openclip(folder: Path) -> ClipCheckpoint:
    file = _weight_file(folder)
    assert file is not None
    tensors = _read_bin(file) if file.suffix == ".bin" else read_safetensors(file)
    dtype = stored_dtype(tensors)
    texts = "token_embedding.weight" in tensors
    if not texts and not any(name.startswith("visual.") for name in tensors):
        tensors = {f"visual.{name}": tensor for name, tensor in tensors.items()}
    content = read_json(folder / OPENCLIP_CONFIG)
    parts, origin = from_openclip_config(content, folder / OPENCLIP_CONFIG, texts=texts)
    if POSITIONS not in tensors:
        raise ValueError(f"{file}: 1 tensor(s) missing, the first {POSITIONS!r}")
    kept = {POSITIONS: tensors.pop(POSITIONS)}
    _require_sincos(kept[POSITIONS], parts, origin, file)
    if not texts and PROJECTION in tensors:
        kept[PROJECTION] = tensors.pop(PROJECTION)
    shape = tensors["logit_scale"].shape if "logit_scale" in tensors else ()
    origin = dataclasses.replace(origin, dtype=dtype, scale_shape=shape)
    params = _params(tensors, folder, parts)
    return ClipCheckpoint(params, parts, _with_tokenizer(origin, folder), kept)


def _read_hf(folder: Path, settings: Mapping[str, Any]) -> ClipCheckpoint:
    processor = read_json(folder / "preprocessor_config.json")
    preprocess = {
        "mean": processor.get("image_mean"),
        "std": processor.get("image_std"),
        "interpolation": {2: "bilinear", 3: "bicubic"}.get(processor.get("resample", 3)),
        "resize_mode": "shortest" if processor.get("do_center_crop") else "squash",
    }
    parts, origin = from_hf_config(settings, preprocess, folder / "config.json")
    tensors = read_weights(folder)
    origin = dataclasses.replace(origin, dtype=stored_dtype(tensors))
    return ClipCheckpoint(_params(tensors, folder, parts), parts, _with_tokenizer(origin, folder))


def _read_with_our_encoder(folder: Path) -> ClipCheckpoint:
    encoder = read_checkpoint(folder)
    file = folder / IMAGE_TEXT
    with safetensors.safe_open(file, "numpy") as opened:
        settings = (opened.metadata() or {}).get("settings")
    if settings is None:
        raise ValueError(f"{file} has no settings in its header: no export of ours wrote it")
    params: dict[str, Any] = {"encoder": encoder.params}
    for name, tensor in read_safetensors(file).items():
        insert(params, name, tensor.astype(np.float32))
    settings = json.loads(settings)
    origin = _with_tokenizer(ClipOrigin(**settings["origin"]), folder)
    return ClipCheckpoint(params, Parts.from_settings(settings["model"]), origin)


def _params(tensors: Mapping[str, np.ndarray], folder: Path, parts: Parts) -> dict[str, Any]:
    file = folder / DECODER
    decoder = read_safetensors(file) if file.is_file() else {}
    try:
        return from_openclip(tensors, decoder, parts)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _weight_file(folder: Path) -> Path | None:
    """The file that OpenCLIP would open; safetensors before pickles."""
    names = (OPENCLIP_WEIGHTS, "open_clip_pytorch_model.safetensors", WEIGHTS, _BIN)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_bin(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch pickle, read by PyTorch's restricted unpickler."""
    from ..torch_file import read_torch_file

    return read_torch_file(file)


def _require_sincos(positions: np.ndarray, parts: Parts, origin: ClipOrigin, file: Path) -> None:
    """Raises a ValueError unless a stored position code is the fixed one that ours computes."""
    side = origin.image_size // parts.vision.patch
    wanted = position_code(side, side, parts.vision.width)
    if positions.shape != wanted.shape:
        raise ValueError(
            f"{file}: tensor {POSITIONS!r} has shape {list(positions.shape)}, image_size = "
            f"{origin.image_size} needs {list(wanted.shape)}"
        )
    error = np.abs(positions.astype(np.float32) - wanted).max()
    tolerance = _POSITION_TOLERANCE if positions.dtype == np.float32 else 2**-7
    if not error < tolerance:
        raise ValueError(
            f"{file}: tensor {POSITIONS!r} differs by {error:.2g} from the fixed sine-cosine code: "
            "models with learned positions are not supported"
        )


def _with_tokenizer(origin: ClipOrigin, folder: Path) -> ClipOrigin:
    file = tokenizer_file(folder)
    return dataclasses.replace(origin, tokenizer=None if file is None else str(file.absolute()))


def _orbax_step(path: Path) -> Path | None:
    from .orbax_folder import find_orbax

    return find_orbax(path)


def _read_jax(step: Path) -> ClipCheckpoint:
    from .jax_weights import infer_parts
    from .orbax_folder import read_orbax

    arrays = read_orbax(step)
    try:
        parts = infer_parts(arrays)
        params = from_jax(arrays, parts)
    except ValueError as error:
        raise ValueError(f"{step}: {error}") from error
    origin = ClipOrigin()
    # The folder that is published around the JAX weights says how images are prepared.
    for folder in step.parents[:4]:
        if (folder / OPENCLIP_CONFIG).is_file():
            content = read_json(folder / OPENCLIP_CONFIG)
            origin = _with_tokenizer(from_openclip_config(content, folder)[1], folder)
            break
    return ClipCheckpoint(params, parts, origin)
