"""Options that the command line and the page share; torch is loaded with the model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...codec.llava.options import add_mosaic_arguments

if TYPE_CHECKING:
    from ..mcq.answer import ModelAnswerer
    from .session import Decoding


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `load_model`, `decoding_of` and `mosaic_options` read."""
    group = parser.add_argument_group("answers")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=512,
        metavar="N",
        help="most tokens of an answer (default: %(default)s)",
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0: the likeliest token each time; more draws (default: %(default)s)",
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="draw among the likeliest tokens with this probability in all (default: %(default)s)",
    )
    group = parser.add_argument_group("model")
    group.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="bfloat16",
        help="default: %(default)s",
    )
    add_mosaic_arguments(parser)


def load_model(args: argparse.Namespace) -> ModelAnswerer:
    """The model of `args.model`; raises ValueError or OSError if it is none."""
    from ..mcq.answer import ModelAnswerer

    return ModelAnswerer.load(args.model, device=args.device, dtype=args.dtype)


def decoding_of(args: argparse.Namespace) -> Decoding:
    """How answers are chosen; raises ValueError for what cannot be."""
    from .session import Decoding

    return Decoding(args.max_new_tokens, args.temperature, args.top_p)
