"""`codecvit import`: a folder of the published onevision-encoder as a checkpoint of ours.

The checkpoint holds the encoder alone. `codecvit.load` opens it, `config.init.checkpoint` starts a
run from it, and `codecvit export` writes the same bytes back: its metadata remember the dtype and
the settings of the folder (`load.Origin`).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from .. import __version__
from ..models.config import SIZES, ViTConfig
from .load import IMPORTED, MODEL_TYPE, Checkpoint, read_checkpoint
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
            f"{folder} has no config.json: expected a Hugging Face folder of {MODEL_TYPE}"
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
        description="Write a Hugging Face folder of the published onevision-encoder as a "
        "checkpoint, which codecvit.load opens and training continues from.",
    )
    parser.add_argument(
        "folder",
        metavar="HF_DIR",
        help="config.json and safetensors, in one file or in shards; bfloat16, float16 or float32",
    )
    parser.add_argument("--out", required=True, metavar="CHECKPOINT", help="a new folder")
    options = parser.parse_args(argv)
    try:
        checkpoint = import_hf(options.folder, options.out)
    except ValueError as error:
        print(f"codecvit import: {error}", file=sys.stderr)
        return 1
    print(f"imported {options.folder} ({checkpoint.origin.dtype}) to {options.out}; continue with")
    flags = model_flags(checkpoint.config)
    print(f"  codecvit train ... --config.init.checkpoint={options.out} {flags}")
    return 0
