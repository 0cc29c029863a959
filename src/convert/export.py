"""An encoder as a Hugging Face folder that `AutoModel.from_pretrained` opens.

The folder holds the weights under the published names, the modelling code of `hf/`, an image
processor and a model card. It is written beside its destination and renamed into place, so that no
half-written folder is ever seen. No torch needed, unless for an ONNX graph.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_json
from ..models.config import ViTConfig
from ..models.vit import IMAGE_MEAN, IMAGE_STD
from .card import model_card
from .folder import ENCODER_CODE, require_free, whole_folder
from .load import MODEL_TYPE, Origin, config_to_hf
from .names import to_hf
from .weights import DTYPES, parse_size, write_weights


def export(
    params: Mapping[str, Any],
    config: ViTConfig,
    out: str | Path,
    *,
    dtype: str = "float32",
    image_size: int = 224,
    rope_temporal_size: int | None = 64,
    shard_size: str | None = None,
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    onnx: bool = False,
    overwrite: bool = False,
    beside: Callable[[Path], None] | None = None,
) -> Path:
    """Writes an encoder as a Hugging Face folder.

    Args:
      params: the encoder's parameter tree.
      config: its sizes.
      out: the folder. An earlier export there is replaced.
      dtype: of the stored weights, a name of weights.DTYPES.
      image_size: side that the image processor makes, a multiple of config.patch.
      rope_temporal_size: most frames of a plain video, None for any number.
      shard_size: most tensor bytes of a weight file, such as "5GB"; None writes one file.
      training: the run's resolved configuration, for the model card.
      metrics: the run's last metrics with their step, for the model card.
      onnx: also write the float32 graph that `codecvit.convert.onnx` describes; needs torch.
      overwrite: replace `out` even when it is a folder of something else.
      beside: writes into the new folder what a model has beside this encoder.

    Returns:
      `out`.

    Raises:
      ValueError: an argument is out of range, the parameters don't fit `config` or are too large
        for `dtype`, `out` is taken, or a package for `onnx` is missing.
    """
    out = Path(out)
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r} must be one of {', '.join(DTYPES)}")
    if image_size < config.patch or image_size % config.patch:
        raise ValueError(
            f"image_size = {image_size} must be a multiple of the patch side {config.patch}"
        )
    for package in ("torch", "transformers", "onnx", "onnxscript") if onnx else ():
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"onnx needs {package}: pip install 'codecvit[torch,onnx]'")
    shard_bytes = None if shard_size is None else parse_size(shard_size)
    require_free(out, overwrite)
    published = to_hf(params, config)
    tensors = {name: cast(name, tensor, dtype) for name, tensor in published.items()}

    with whole_folder(out, overwrite) as new:
        write_weights(new, tensors, shard_bytes)
        if beside is not None:
            beside(new)
        settings = _model_settings(config, Origin(dtype, image_size, rope_temporal_size))
        write_json(new / "config.json", settings, sort_keys=True)
        write_json(new / "preprocessor_config.json", processor_settings(image_size), sort_keys=True)
        copy_code(new, ENCODER_CODE)
        if onnx:
            from .onnx import write_onnx

            write_onnx(new, published, config_to_hf(config, Origin()))
        card = model_card(config, dtype, image_size, training, metrics)
        (new / "README.md").write_text(card)
    return out


def copy_code(folder: Path, files: Iterable[str]) -> None:
    """Copies files of `hf/` into an exported folder."""
    for name in files:
        source = resources.files(f"{__package__}.hf").joinpath(name)
        (folder / name).write_bytes(source.read_bytes())


def cast(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor in a dtype of weights.DTYPES; ValueError where it is too large for it."""
    with np.errstate(over="ignore"):
        cast = tensor.astype(DTYPES[dtype])
    if not np.isfinite(cast.astype(np.float32)).all() and np.isfinite(tensor).all():
        raise ValueError(
            f"tensor {name!r} reaches {abs(tensor).max():.3g}, too large for {dtype}: export with "
            "another dtype"
        )
    return cast


def _model_settings(config: ViTConfig, origin: Origin) -> dict[str, Any]:
    return {
        "architectures": ["OneVisionEncoderModel"],
        "auto_map": {
            "AutoConfig": "configuration_onevision_encoder.OneVisionEncoderConfig",
            "AutoModel": "modeling_onevision_encoder.OneVisionEncoderModel",
        },
        "model_type": MODEL_TYPE,
        "dtype": origin.dtype,
        **config_to_hf(config, origin),
    }


def processor_settings(image_size: int) -> dict[str, Any]:
    name = "OneVisionEncoderImageProcessor"
    return {
        "auto_map": {"AutoImageProcessor": f"image_processing_onevision_encoder.{name}"},
        "image_processor_type": name,
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
    }
