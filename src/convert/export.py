"""`codecvit export`: an encoder as a Hugging Face folder that `AutoModel.from_pretrained` opens.

The folder holds the weights under the published names, the modelling code of `hf/`, an image
processor and a model card. It is written beside its destination and renamed into place, so that no
half-written folder is ever seen. No torch needed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from ..models.config import ViTConfig
from ..models.vit import IMAGE_MEAN, IMAGE_STD
from .load import MODEL_TYPE, WEIGHTS, config_to_hf, read_checkpoint
from .names import to_hf

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
CODE = (
    "configuration_onevision_encoder.py",
    "modeling_onevision_encoder.py",
    "image_processing_onevision_encoder.py",
)
FILES = frozenset({"config.json", "preprocessor_config.json", "README.md", WEIGHTS, *CODE})


def export(
    params: Mapping[str, Any],
    config: ViTConfig,
    out: str | Path,
    *,
    dtype: str = "float32",
    image_size: int = 224,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes an encoder as a Hugging Face folder.

    Args:
      params: the encoder's parameter tree.
      config: its sizes.
      out: the folder. An earlier export there is replaced.
      dtype: of the stored weights, "float32" or "bfloat16".
      image_size: side that the image processor makes, a multiple of config.patch.
      training: the run's resolved configuration, for the model card.
      overwrite: replace `out` even when it is a folder of something else.

    Returns:
      `out`.

    Raises:
      ValueError: an argument is out of range, the parameters don't fit `config`, or `out` is taken.
    """
    out = Path(out)
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r} must be one of {', '.join(DTYPES)}")
    if image_size < config.patch or image_size % config.patch:
        raise ValueError(
            f"image_size = {image_size} must be a multiple of the patch side {config.patch}"
        )
    _require_free(out, overwrite)
    tensors = {name: tensor.astype(DTYPES[dtype]) for name, tensor in to_hf(params, config).items()}

    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    new = out.absolute().with_name(f".{out.name}.new-{os.getpid()}")
    new.mkdir()
    try:
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        _write_json(new / "config.json", _model_settings(config, dtype, image_size))
        _write_json(new / "preprocessor_config.json", _processor_settings(image_size))
        for name in CODE:
            source = resources.files(f"{__package__}.hf").joinpath(name)
            (new / name).write_bytes(source.read_bytes())
        (new / "README.md").write_text(_model_card(config, dtype, image_size, training))
        _move_into_place(new, out.absolute())
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return out


def _require_free(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder")
    if overwrite or not out.is_dir():
        return
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in FILES)
    if foreign:
        raise ValueError(
            f"{out} holds {foreign[0]!r}, which no export wrote: name another folder, or replace "
            "all of it with --overwrite"
        )


def _move_into_place(new: Path, out: Path) -> None:
    """Renames `new` to `out`; a folder that is there steps aside first and is deleted last."""
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    new.rename(out)
    if old.exists():
        shutil.rmtree(old)


def _model_settings(config: ViTConfig, dtype: str, image_size: int) -> dict[str, Any]:
    return {
        "architectures": ["OneVisionEncoderModel"],
        "auto_map": {
            "AutoConfig": "configuration_onevision_encoder.OneVisionEncoderConfig",
            "AutoModel": "modeling_onevision_encoder.OneVisionEncoderModel",
        },
        "model_type": MODEL_TYPE,
        "dtype": dtype,
        **config_to_hf(config, image_size),
    }


def _processor_settings(image_size: int) -> dict[str, Any]:
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


def _model_card(
    config: ViTConfig, dtype: str, image_size: int, training: Mapping[str, Any] | None
) -> str:
    card = f"""\
---
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [vision, video, codec]
---
# Vision encoder trained by CodecViT

A vision transformer with a 3-D rotary position code (t, h, w) that reads images, video frames and
codec-selected patches. Width {config.width}, {config.depth} blocks, {config.num_heads} heads,
patches of {config.patch} x {config.patch} pixels, weights in {dtype}. Parameter names,
configuration and call are those of the published onevision-encoder (arXiv 2602.08683).

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained(FOLDER, trust_remote_code=True)
with torch.no_grad():
    out = model(**processor(Image.open("photo.jpg"), return_tensors="pt"))
out.last_hidden_state  # [1, {(image_size // config.patch) ** 2}, {config.width}]
out.pooler_output  # [1, {config.width}]
```

Video: `pixel_values` [B, 3, T, height, width] with `patch_positions` [B, tokens, 3] = (t, h, w),
t spread over 64 slots. Selected patches:
`codecvit.convert.torch_input(codecvit.pack_video("clip.mp4"))` makes the arguments of the model.
`codecvit.load(FOLDER)` opens the same folder in JAX.
"""
    if training is not None:
        settings = json.dumps(training, indent=2, sort_keys=True)
        card += f"\n## Training configuration\n\n```json\n{settings}\n```\n"
    return card


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def main(argv: list[str]) -> int:
    """The verb `codecvit export`."""
    parser = argparse.ArgumentParser(
        prog="codecvit export",
        description="Write an encoder as a Hugging Face folder, which "
        "AutoModel.from_pretrained(DIR, trust_remote_code=True) opens.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="work directory of training (its newest checkpoint), WORKDIR/checkpoints/STEP, or a "
        "Hugging Face folder",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="an earlier export is replaced")
    parser.add_argument(
        "--dtype",
        choices=sorted(DTYPES),
        default="float32",
        help="of the weights (default float32)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        default=224,
        metavar="N",
        help="side in pixels that the image processor makes (default 224)",
    )
    parser.add_argument(
        "--ema", action="store_true", help="the moving average of the parameters (config.ema)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace DIR even when it is no export"
    )
    options = parser.parse_args(argv)
    try:
        checkpoint = read_checkpoint(options.checkpoint, ema=options.ema)
        out = export(
            checkpoint.params,
            checkpoint.config,
            options.out,
            dtype=options.dtype,
            image_size=options.image_size,
            training=checkpoint.training,
            overwrite=options.overwrite,
        )
    except ValueError as error:
        print(f"codecvit export: {error}", file=sys.stderr)
        return 1
    print(f"exported {options.checkpoint} to {out}")
    return 0
