"""`codecvit llava judge`: rates the answers of `codecvit llava answer`, or of any other model."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

from ..mcq.merge import merge
from ..progress import tell
from .batch import Batches
from .endpoint import KEY, URL, ChatJudge, Endpoint
from .figures import judged_figures, judged_table
from .judges import BrokenJudge, ExactJudge, Judge, JudgeError, StubJudge
from .predictions import Job, read_jobs
from .prompts import messages
from .rate import TRIES, describe_run, rate


def main(argv: list[str]) -> int:
    """The verb: 0; 1 if judgements lack, so that it has to run again; 2 for what cannot work."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.out is None and not args.dry_run:
        parser.error("--out is needed")
    try:
        return _judge(args)
    except (ValueError, OSError) as error:
        print(f"codecvit llava judge: {error}", file=sys.stderr)
        return 2
    except (BrokenJudge, JudgeError) as error:
        print(f"codecvit llava judge: {error}\nrun again to go on", file=sys.stderr)
        return 1


def _judge(args: argparse.Namespace) -> int:
    jobs, name = read_jobs(args.predictions)
    if args.dry_run:
        return _tell(jobs)
    judge = load_judge(args)
    if args.batch and not isinstance(judge, ChatJudge):
        raise ValueError("--batch is for --judge openai:MODEL")
    run = describe_run(jobs, name, str(Path(args.predictions).absolute()), judge)
    out = Path(args.out)
    if args.batch:
        assert isinstance(judge, ChatJudge)
        batches = Batches(jobs, judge, out, run, args.poll, _batches)
        batches.rate(args.retry_unparsed)
    else:
        progress = functools.partial(tell, "judgements {}/{}")
        rate(jobs, judge, out, run, args.concurrency, args.tries, args.retry_unparsed, progress)
    figures = merge(out, judged_figures)
    print(judged_table(figures))
    failed = figures["statuses"]["judge_error"]
    if failed:
        print(f"{failed} requests failed: run again to ask only these", file=sys.stderr)
    return 1 if failed else 0


def load_judge(args: argparse.Namespace) -> Judge:
    """The judge that `--judge` names; raises ValueError for none."""
    kind, _, name = args.judge.partition(":")
    if args.request is not None and kind != "openai":
        raise ValueError("--request is for --judge openai:MODEL")
    if kind == "openai" and name:
        return ChatJudge(name, Endpoint(timeout=args.timeout), _fields(args.request))
    if kind == "hf" and name:
        from .local_judge import LocalJudge

        return LocalJudge(name, args.device, args.dtype)
    if args.judge == "exact":
        return ExactJudge()
    if args.judge == "stub":
        return StubJudge()
    raise ValueError(f"judge = {args.judge!r} must be openai:MODEL, hf:DIR, exact or stub")


def _fields(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--request {text!r} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"--request {text!r} must be a JSON object")
    return value


def _tell(jobs: list[Job]) -> int:
    asked = [job for job in jobs if job.answered]
    size = sum(len(message["content"]) for job in asked for message in messages(job))
    print(f"{len(jobs)} judgements; {len(jobs) - len(asked)} have no answer and need no request")
    print(f"{len(asked)} requests of {size} characters in all, about {size // 4} tokens; none sent")
    return 0


def _batches(done: int, total: int) -> None:
    print(f"batches {done}/{total}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit llava judge",
        description="Asks a judge how well answers agree with references, and stores each reply. "
        "Run again, it asks only what is missing.",
        epilog=f"{KEY} and {URL} are read from the environment, and written nowhere. example: "
        "codecvit llava judge results/msvd --judge openai:gpt-4o-mini-2024-07-18 --out judged/msvd",
    )
    parser.add_argument(
        "predictions",
        metavar="PREDICTIONS",
        help="--out of `codecvit llava answer`, or a JSONL file of question_id, question, answer, "
        "pred",
    )
    parser.add_argument(
        "--judge",
        required=True,
        metavar="JUDGE",
        help="openai:MODEL, any OpenAI-compatible endpoint; hf:DIR, a local chat model; exact, "
        "the same words; stub, shared words, to try out a set-up",
    )
    parser.add_argument("--out", metavar="DIR", help="judgements and figures")
    parser.add_argument(
        "--tries",
        type=int,
        default=TRIES,
        help="replies asked for at most until one can be read (default: %(default)s)",
    )
    parser.add_argument(
        "--retry-unparsed", action="store_true", help="ask again what could not be read before"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only tell how many requests there would be"
    )
    group = parser.add_argument_group("openai")
    group.add_argument(
        "--concurrency", type=int, default=8, help="requests at a time (default: %(default)s)"
    )
    group.add_argument(
        "--timeout", type=float, default=60.0, help="seconds a request (default: %(default)s)"
    )
    group.add_argument(
        "--request",
        metavar="JSON",
        help="fields of every request, over temperature 0 and max_tokens 64; null removes one: "
        '{"max_tokens": null, "max_completion_tokens": 64}',
    )
    group.add_argument(
        "--batch", action="store_true", help="by the Batch API: cheaper, replies within a day"
    )
    group.add_argument(
        "--poll", type=float, default=60.0, help="seconds between looks (default: %(default)s)"
    )
    group = parser.add_argument_group("hf")
    group.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="bfloat16",
        help="default: %(default)s",
    )
    return parser
