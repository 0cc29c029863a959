"""`codecvit evaluate-pairs`: zero-shot classification and retrieval of a trained image-text model.

    codecvit evaluate-pairs CHECKPOINT --zero-shot records:IMAGENET_VAL --classes classes.txt
    codecvit evaluate-pairs CHECKPOINT --retrieval coco-karpathy:COCO --out results.json

Pairs are of any kind that `codecvit pack-pairs` reads, packed or not (docs/data.md).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jax
from jax.sharding import NamedSharding, PartitionSpec

from ..data.pairs.open import SPECS
from ..evaluators.prompts import KNOWN, TEMPLATES
from ..files import write_json
from . import mesh as meshes
from .contrastive_config import RetrievalConfig, ZeroShotConfig
from .pair_evaluation import PairModel, Retrieval, ZeroShot
from .run_config import MeshConfig


def main(argv: list[str]) -> int:
    """The verb `evaluate-pairs`."""
    parser = argparse.ArgumentParser(
        prog="codecvit evaluate-pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="what codecvit.load_clip takes")
    parser.add_argument("--zero-shot", metavar="PAIRS", help=f"labelled images, one of {SPECS}")
    parser.add_argument("--classes", help="file of class names, for --zero-shot")
    parser.add_argument(
        "--dataset", default="", choices=["", *KNOWN], help="checks that the file has its classes"
    )
    parser.add_argument(
        "--templates", default="imagenet-7", help=f"{', '.join(TEMPLATES)}, or a file of them"
    )
    parser.add_argument("--first-name", action="store_true", help="no aliases of classes")
    parser.add_argument(
        "--canonical", action="store_true", help="prompts in lower case without punctuation"
    )
    parser.add_argument("--retrieval", metavar="PAIRS", help="captioned images, likewise")
    parser.add_argument("--preset", help="which columns are what; default imagenet, coco")
    parser.add_argument("--columns", default="", help="other columns, as for pack-pairs")
    parser.add_argument("--tokenizer", help="file; by default the one that the model names")
    parser.add_argument("--image-size", type=int, default=0, help="default: that of the training")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--ema", action="store_true", help="the moving average of the encoder")
    parser.add_argument("--out", type=Path, help="also write the results, JSON")
    args = parser.parse_args(argv)
    if not args.zero_shot and not args.retrieval:
        parser.error("give --zero-shot, --retrieval or both")
    if args.zero_shot and not args.classes:
        parser.error("--zero-shot needs --classes")
    try:
        results = evaluate(args)
    except ValueError as error:
        print(f"codecvit evaluate-pairs: {error}", file=sys.stderr)
        return 1
    print(json.dumps(results, indent=2))
    if args.out:
        write_json(args.out, results)
    return 0


def evaluate(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What the command line asks for."""
    from ..convert.openclip.read import read_clip

    found = read_clip(args.model, ema=args.ema)
    tokenizer = found.tokenizer(args.tokenizer)
    if found.parts.text is None:
        raise ValueError(f"{args.model} has no text tower, so no common embedding to evaluate")
    mesh = meshes.make_mesh(MeshConfig())
    common = {"columns": args.columns, "batch_size": args.batch_size}
    results = {}
    with jax.set_mesh(mesh):
        size = args.image_size or found.origin.image_size
        model = PairModel(found.parts.clip(), tokenizer, size, mesh)
        model.params = jax.device_put(found.params, NamedSharding(mesh, PartitionSpec()))
        if args.zero_shot:
            config = ZeroShotConfig(
                pairs=args.zero_shot,
                classes=args.classes,
                dataset=args.dataset,
                templates=args.templates,
                aliases=not args.first_name,
                canonical=args.canonical,
                preset=args.preset or "imagenet",
                **common,
            )
            results["zero_shot"] = ZeroShot(config)(model)
        if args.retrieval:
            preset = args.preset or "coco"
            config = RetrievalConfig(pairs=args.retrieval, preset=preset, **common)
            results["retrieval"] = Retrieval(config)(model)
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
