"""`codecvit llava VERB ...`: what belongs to LLaVA models, each verb imported when it is called."""

from __future__ import annotations

import importlib
import sys

# Paths are those of modules in the package: training and evaluation live in another part of it.
VERBS = {
    "data": ("codec.llava.data", "raw LLaVA rows with videos -> mosaics and training JSONL"),
    "assets": ("codec.llava.assets", "videos of a benchmark -> mosaics for evaluation"),
    "check": ("codec.llava.check", "are all files of a data set or of assets there and right?"),
    "train": ("llava.training.train", "train a video language model on an exported encoder"),
    "merge-lora": ("llava.training.merge_lora", "a LoRA run -> a complete model"),
    "import": ("llava.merv.importing", "a published checkpoint of MERV -> a model"),
    "prepare": ("llava.prepare.verb", "a benchmark as handed out -> a folder for eval or answer"),
    "eval": ("llava.mcq.verb", "multiple-choice accuracy of a model, in chunks that resume"),
    "curves": ("llava.mcq.curves", "accuracy against tokens: codec patches beside whole frames"),
    "pool-sweep": ("llava.mcq.pool_sweep", "accuracy of several pool levels against tokens"),
    "benchmark": ("llava.benchmarks.prepare", "videos of a public benchmark -> its assets"),
    "lmms": ("llava.benchmarks.lmms_run", "an evaluation by lmms-eval, assets found by task"),
    "report": ("llava.report.page", "results as one page: frames, patches read, answers, verdicts"),
    "answer": ("llava.open_ended.answer", "answers of a model to open questions, in chunks"),
    "judge": ("llava.open_ended.verb", "a judge's accuracy and scores of such answers"),
    "chat": ("llava.chat.verb", "ask a model about a video, answers word by word"),
    "web": ("llava.chat.web", "the same on a page: frames, patches read, answers"),
    "demo-questions": ("llava.demo_questions", "questions about the clips of `codecvit demo-data`"),
}


def usage() -> str:
    width = max(map(len, VERBS))
    lines = ["usage: codecvit llava VERB [options]", "", "verbs:"]
    lines += [f"  {verb:{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join([*lines, "", "`codecvit llava VERB --help` tells more about each."])


def main(argv: list[str]) -> int:
    """Runs one verb.

    Args:
      argv: the arguments after `llava`.

    Returns:
      The exit status: 0 success, 1 the verb failed, 2 wrong usage.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] not in VERBS:
        print(f"codecvit llava: no verb {argv[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    package = __package__.removesuffix(".codec.llava")
    module = importlib.import_module(f".{VERBS[argv[0]][0]}", package)
    return module.main(argv[1:])
