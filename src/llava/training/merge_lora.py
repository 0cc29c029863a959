"""The verb `llava merge-lora`: a run's newest checkpoint -> a complete model, adapter merged."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .config import DTYPES


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="codecvit llava merge-lora",
        description="Writes the model of a run's newest checkpoint as a complete folder, adapter "
        "merged into the weights. A finished run has its own in RUN/model; this is for others, and "
        "for other dtypes.",
    )
    parser.add_argument("run", type=Path, help="work directory of `codecvit llava train`")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, help="default: that of the run")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    args = parser.parse_args(argv)
    from .finish import write_model

    try:
        if args.out.exists() and any(args.out.iterdir()) and not args.overwrite:
            raise ValueError(f"{args.out} is not empty: name another folder, or give --overwrite")
        out = write_model(args.run, args.out, args.dtype)
    except (ValueError, OSError) as error:
        print(f"codecvit llava merge-lora: {error}", file=sys.stderr)
        return 1
    print(f"{args.run} -> {out}")
    return 0
