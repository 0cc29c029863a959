"""`codecvit llava lmms`: an evaluation by lmms-eval, with the assets found by task."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..mcq.sources import ON_MISS
from .lmms_plugin import MODEL_ID
from .tasks import hf_home, lmms_tasks, offline_folders


def main(argv: list[str]) -> int:
    """The verb: replaces this process by lmms-eval; 2 for what cannot work."""
    args, rest = _parser().parse_known_args(argv)
    try:
        command = lmms_command(args, [part for part in rest if part != "--"])
    except ValueError as error:
        print(f"codecvit llava lmms: {error}", file=sys.stderr)
        return 2
    print(f"$ {shlex.join(command)}", file=sys.stderr, flush=True)
    if not args.dry_run:
        os.execvp(command[0], command)
    return 0


def lmms_command(args: argparse.Namespace, more: Sequence[str]) -> list[str]:
    """The command line of lmms-eval.

    Args:
      args: of this verb.
      more: further arguments of lmms-eval.

    Raises:
      ValueError: assets are missing, or a value that lmms-eval would take apart.
    """
    tasks = lmms_tasks(args.tasks)
    home = hf_home()
    assets = args.assets
    if assets is None:
        folders = offline_folders(tasks, home if args.root is None else Path(args.root).absolute())
        missing = [folder for folder in folders if not folder.is_dir()]
        if missing and args.on_miss == "error":
            raise ValueError(
                f"{', '.join(map(str, missing))}: no such folder; `codecvit llava benchmark "
                f"{','.join(f.name.removesuffix('_offline') for f in missing)}` makes them; or "
                "say --on-miss pack"
            )
        assets = ":".join(str(folder) for folder in folders if folder not in missing)
    options = {
        "pretrained": args.model,
        "assets": assets,
        "on_miss": args.on_miss,
        "results": str(Path(args.out) / "codecvit"),
        "dtype": args.dtype,
        "video_root": args.video_root,
    }
    for name, value in options.items():
        if value and set(str(value)) & set(",=\"'{}[]"):
            raise ValueError(f"{name} = {value!r}: lmms-eval cannot take a comma, =, or quotes")
    model_args = ",".join(f"{name}={value}" for name, value in options.items() if value)
    launcher = [args.python, "-m"]
    if args.processes > 1:
        count = ["--num_processes", str(args.processes)]
        launcher += ["accelerate.commands.launch", *count, "-m"]
    return [
        *(*launcher, "lmms_eval", "--model", MODEL_ID, "--model_args", model_args),
        *("--tasks", ",".join(tasks), "--batch_size", str(args.batch_size)),
        *("--log_samples", "--output_path", args.out, *more),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit llava lmms",
        description="Evaluates a model with lmms-eval (scripts/llava/setup_lmms_eval.sh installs "
        "it). Assets are those that `codecvit llava benchmark` made of each task.",
        epilog="example: codecvit llava lmms --model runs/stage2/model --tasks nextqa,ai2d --out "
        "results; further arguments go to lmms-eval: --limit 8",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a saved model")
    parser.add_argument(
        "--tasks", required=True, help="tasks of lmms-eval with commas, short names too; or all"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="results and counts")
    parser.add_argument(
        "--assets", metavar="DIRS", help="several with colons (default: HF_HOME/TASK_offline)"
    )
    parser.add_argument(
        "--root", metavar="DIR", help="--out of `codecvit llava benchmark` (default: HF_HOME)"
    )
    parser.add_argument(
        "--video-root",
        metavar="DIR",
        help="what videos are relative to, where neither the assets nor the task knows it",
    )
    parser.add_argument(
        "--on-miss",
        choices=ON_MISS,
        default="error",
        help="for videos without assets: stop before the first question, pack, or show frames "
        "(default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=1, help="GPUs (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="default: %(default)s")
    parser.add_argument(
        "--python", default=sys.executable, help="of lmms-eval's environment (default: this one)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the command")
    return parser
