"""`codecvit import`: published weights as a checkpoint of ours.

Of a folder of the onevision-encoder the checkpoint holds the encoder alone. `codecvit.load` opens
it, `config.init.checkpoint` starts a run from it, and `codecvit export` writes the same bytes back:
its metadata remember the dtype and the settings of the folder (`load.Origin`). OpenVision's
image-text models are the matter of `openclip.adopt`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from .. import __version__
from ..models.config import SIZES, ViTConfig
from .folder import JAX_FOLDER, OPENCLIP_CONFIG
from .load import IMPORTED, MODEL_TYPE, Checkpoint, read_checkpoint
from .openclip.adopt import import_clip, training_arguments
from .openclip.names import PROJECTION
from .openclip.read import is_clip
from .weights import read_json


def import_hf(folder: str | Path, out: str | Path) -> Checkpoint:
    """Writes the weights of a Hugging Face folder as a checkpoint.

    Args:
      folder: of the published onevision-encoder, any size, or of `codecvit export`: config.json
        with one safetensors file or shards, in bfloat16, float16 or float32.
      out: the checkpoint, a folder that does not exist yet.

    Returns:
      What was read.

    Raises:
      ValueError: `folder` is no such folder; a tensor is missing, unknown or of another shape or
        dtype, and the message names it; `out` exists.
    """
    # Imported here: --help needs no Orbax.
    from ..trainers.checkpoints import save_params

    folder, out = Path(folder), Path(out)
    if out.exists():
        raise ValueError(f"{out} exists: name another folder, or remove it")
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json: expected a Hugging Face folder of {MODEL_TYPE}, or "
            f"OpenVision's weights ({OPENCLIP_CONFIG}, or {JAX_FOLDER})"
        )
    if "model_type" not in read_json(folder / "config.json"):
        raise ValueError(f"{folder / 'config.json'} has no model_type: expected {MODEL_TYPE!r}")
    checkpoint = read_checkpoint(folder)
    metadata = {
        "config": {"model": dataclasses.asdict(checkpoint.config)},
        IMPORTED: dataclasses.asdict(checkpoint.origin),
        "version": __version__,
    }
    save_params(out, checkpoint.params, metadata)
    return checkpoint


def model_flags(config: ViTConfig) -> str:
    """What a training command says to build an encoder of these sizes."""
    sizes = {field: getattr(config, field) for field in ("width", "depth", "num_heads", "mlp_dim")}
    known = [name for name, size in SIZES.items() if size == sizes]
    flags = {"variant": f"{known[0]}/{config.patch}"} if known else {**sizes, "patch": config.patch}
    for field in ("rope_theta", "layer_norm_eps"):
        if getattr(config, field) != ViTConfig.__dataclass_fields__[field].default:
            flags[field] = getattr(config, field)
    return " ".join(f"--config.model.{field}={value}" for field, value in flags.items())


def main(argv: list[str]) -> int:
    """The verb `codecvit import`."""
    parser = argparse.ArgumentParser(
        prog="codecvit import",
        description="Write published weights as a checkpoint, which codecvit.load or "
        "codecvit.load_clip opens and training continues from: a Hugging Face folder of the "
        "onevision-encoder, an OpenVision model for OpenCLIP, OpenVision's jax_orbax_weight, or "
        "what `codecvit export` wrote. Which of them it is, the folder tells.",
    )
    parser.add_argument(
        "folder",
        metavar="DIR",
        help="config.json or open_clip_config.json and safetensors, in bfloat16, float16 or "
        "float32, or a .bin (read without running code in it); or a folder of Orbax",
    )
    parser.add_argument("--out", required=True, metavar="CHECKPOINT", help="a new folder")
    options = parser.parse_args(argv)
    try:
        if is_clip(options.folder):
            _import_clip(options.folder, options.out)
        else:
            checkpoint = import_hf(options.folder, options.out)
            kind = checkpoint.origin.dtype
            print(f"imported {options.folder} ({kind}) to {options.out}; continue with")
            flags = model_flags(checkpoint.config)
            print(f"  codecvit train ... --config.init.checkpoint={options.out} {flags}")
    except ValueError as error:
        print(f"codecvit import: {error}", file=sys.stderr)
        return 1
    return 0


def _import_clip(folder: str, out: str) -> None:
    checkpoint = import_clip(folder, out)
    origin = checkpoint.origin
    print(f"imported {folder} ({origin.dtype}) to {out}; continue with")
    if PROJECTION in checkpoint.kept:
        shape = list(checkpoint.kept[PROJECTION].shape)
        print(f"  {PROJECTION} {shape} leads nowhere without a text tower: kept, and not used")
    arguments = training_arguments(checkpoint.parts, out)
    print(f"  codecvit train-pairs --config=src/configs/openvision.py:{arguments}")
    if checkpoint.parts.decoder is None and (Path(folder) / JAX_FOLDER).is_dir():
        print(f"{Path(folder) / JAX_FOLDER} may hold the caption decoder too: import that folder")
