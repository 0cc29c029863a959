"""`codecvit llava chat`: questions about a video or an image on the command line."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...codec.llava.options import mosaic_options
from ..mcq.sources import ON_MISS
from .arguments import add_chat_arguments, decoding_of, load_model

if TYPE_CHECKING:
    from .session import Conversation, Decoding

_PROMPT = "> "
_HELP = "ask; /new begins anew, /quit or Ctrl-D ends, Ctrl-C cuts an answer short"


def main(argv: list[str]) -> int:
    """The verb: 0; 1 if an answer failed; 2 for what cannot work."""
    # Questions may stand behind options.
    args = _parser().parse_intermixed_args(argv)
    try:
        options = mosaic_options(args)
        decoding = decoding_of(args)
        # Transformers takes seconds to load: mistakes of the command are told before.
        from .session import Conversation
        from .sight import Reader

        answerer = load_model(args)
        reader = Reader(answerer, options, args.assets, args.root, args.on_miss)
        sight = reader.read(args.visual)
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    print(f"{args.visual}: {sight.describe()}", file=sys.stderr)
    conversation = Conversation(answerer, sight)
    try:
        if args.question:
            for number, question in enumerate(args.question):
                if len(args.question) > 1:
                    print("\n" * (number > 0) + _PROMPT + question)
                answer(conversation, question, decoding)
            return 0
        return converse(conversation, decoding)
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        return _fail(error, 1)


def answer(conversation: Conversation, question: str, decoding: Decoding) -> None:
    """Prints an answer while it comes; errors as those of `Conversation.ask`."""
    printed = ""
    for text in conversation.ask(question, decoding):
        if text.startswith(printed):
            print(text[len(printed) :], end="", flush=True)
        else:  # a tokenizer that closes up the blanks before punctuation took one back
            print(f"\n{text}", end="", flush=True)
        printed = text
    print()
    last = conversation.last
    if last is not None:
        told = f"{last.visual_tokens} visual, {last.text_tokens} text tokens"
        for name, weight in (last.fusion or {}).items():
            told += f"; {name} {weight:.2f}"
        print(f"[{told}]", file=sys.stderr)


def converse(conversation: Conversation, decoding: Decoding) -> int:
    """Asks for questions until there are no more; 1 if one of a list could not be answered.

    A question that fails ends nothing.
    """
    typing, status = sys.stdin.isatty(), 0
    if typing:
        print(_HELP, file=sys.stderr)
    current = conversation
    for line in _lines(typing):
        question = line.strip()
        if question == "/quit":
            break
        if question == "/new":
            current = type(conversation)(conversation.answerer, conversation.sight)
            continue
        if question.startswith("/"):
            print(f"no command {question!r}: {_HELP}", file=sys.stderr)
            continue
        if not question:
            continue
        try:
            answer(current, question, decoding)
        except KeyboardInterrupt:
            print("\n[cut short]", file=sys.stderr)
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            status = _fail(error, 1)
    return 0 if typing else status


def _lines(typing: bool) -> Iterator[str]:
    if not typing:
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrow keys)
    while True:
        try:
            yield input(_PROMPT)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print(f"\n{_HELP}", file=sys.stderr)


def _fail(error: Exception, code: int) -> int:
    print(f"codecvit llava chat: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit llava chat",
        description="Asks a model about a video or an image; the answer is printed while it comes. "
        "Several questions are one conversation. Without any, questions are asked for, or read "
        "from standard input, a line each.",
        epilog='example: codecvit llava chat runs/stage2/model clip.mp4 "What moves?" "And then?"',
    )
    parser.add_argument("model", metavar="MODEL", help="what `codecvit llava train` saved")
    parser.add_argument(
        "visual", metavar="VIDEO", help="a video, a folder of numbered images, or an image; or URL"
    )
    parser.add_argument("question", nargs="*", metavar="QUESTION", help="one or more")
    group = parser.add_argument_group("what the model sees")
    group.add_argument(
        "--assets", metavar="DIR", help="--out of `codecvit llava assets`: taken where it has some"
    )
    group.add_argument(
        "--root", metavar="DIR", help="--root of these assets (default: the video's folder)"
    )
    group.add_argument(
        "--on-miss",
        choices=ON_MISS,
        default="pack",
        help="without assets of the video: pack it now, by the options below; show whole frames; "
        "or stop (default: %(default)s)",
    )
    add_chat_arguments(parser)
    return parser
