"""`codecvit export`: an encoder or an image-text model as a folder for PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from .export import export
from .load import read_checkpoint
from .openclip.names import POSITIONS
from .openclip.read import is_clip, read_clip
from .openclip.write import FORMATS, export_clip
from .weights import DTYPES


def main(argv: list[str]) -> int:
    """The verb `codecvit export`."""
    parser = argparse.ArgumentParser(
        prog="codecvit export",
        description="Write an encoder or an image-text model as a Hugging Face folder, which "
        "AutoModel.from_pretrained(DIR, trust_remote_code=True) opens, or an image-text model as a "
        "folder that OpenCLIP opens as local-dir:DIR.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="work directory of training (its newest checkpoint), WORKDIR/checkpoints/STEP, what "
        "`codecvit import` wrote, or an exported or published folder",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="an earlier export is replaced")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="hf",
        help="hf: for transformers (default); openclip: for OpenCLIP, image-text models alone",
    )
    parser.add_argument(
        "--dtype",
        choices=sorted(DTYPES),
        help="of the weights (default: that of an imported folder, else float32)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="side in pixels that the image processor makes (default: that of an imported folder, "
        "else 224, or of an image-text run the largest it trained at)",
    )
    parser.add_argument(
        "--shard-size",
        metavar="SIZE",
        help="cut the weights into files of at most this size, such as 5GB (default: one file)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="of an image-text model (default: that of its run or its imported folder)",
    )
    parser.add_argument(
        "--onnx", action="store_true", help="also write model.onnx, in float32 (extras torch, onnx)"
    )
    parser.add_argument(
        "--ema", action="store_true", help="the moving average of the parameters (config.ema)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace DIR even when it is no export"
    )
    options = parser.parse_args(argv)
    try:
        out = _export_clip(options) if is_clip(options.checkpoint) else _export_encoder(options)
    except ValueError as error:
        print(f"codecvit export: {error}", file=sys.stderr)
        return 1
    print(f"exported {options.checkpoint} to {out}")
    return 0


def _export_encoder(options: argparse.Namespace) -> Path:
    checkpoint = read_checkpoint(options.checkpoint, ema=options.ema)
    if options.format != "hf":
        raise ValueError(
            f"--format {options.format}: {options.checkpoint} holds an encoder without texts, "
            "which OpenCLIP does not know"
        )
    if options.tokenizer is not None:
        raise ValueError(f"--tokenizer: {options.checkpoint} reads no texts, leave it out")
    origin = checkpoint.origin
    return export(
        checkpoint.params,
        checkpoint.config,
        options.out,
        dtype=options.dtype or origin.dtype,
        image_size=origin.image_size if options.image_size is None else options.image_size,
        rope_temporal_size=origin.rope_temporal_size,
        shard_size=options.shard_size,
        training=checkpoint.training,
        metrics=checkpoint.metrics,
        onnx=options.onnx,
        overwrite=options.overwrite,
    )


def _export_clip(options: argparse.Namespace) -> Path:
    if options.onnx:
        raise ValueError("--onnx: only encoders are written as a graph, not image-text models")
    checkpoint = read_clip(options.checkpoint, ema=options.ema)
    origin, positions = checkpoint.origin, checkpoint.kept.get(POSITIONS)
    if options.dtype is not None and options.dtype != origin.dtype:
        origin, positions = dataclasses.replace(origin, dtype=options.dtype), None
    if options.image_size is not None and options.image_size != origin.image_size:
        origin, positions = dataclasses.replace(origin, image_size=options.image_size), None
    return export_clip(
        checkpoint.params,
        checkpoint.parts,
        options.out,
        layout=options.format,
        origin=origin,
        tokenizer=checkpoint.tokenizer(options.tokenizer),
        positions=positions,
        shard_size=options.shard_size,
        training=checkpoint.training,
        metrics=checkpoint.metrics,
        overwrite=options.overwrite,
    )
