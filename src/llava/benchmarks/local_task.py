"""A benchmark of our runner as a task of lmms-eval on this disk, and the answers of both compared.

python -m codecvit.llava.benchmarks.local_task write --benchmark DIR --out TASKS
python -m codecvit.llava.benchmarks.local_task compare OWN_RESULTS LMMS_RESULTS
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ...codec.llava.rows import json_line
from ...files import write_atomic
from ..mcq.merge import read_results
from ..mcq.parse import strategy_named
from ..mcq.questions import read_questions

TASK = "codecvit_local"

# lmms-eval loads JSON files without its hub when they are named so.
_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: truth
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: {limit}
  temperature: 0
  do_sample: false
metric_list:
  - metric: correct
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""

_UTILS = '''\
"""Functions of the task; written by codecvit."""


def doc_to_visual(doc):
    return [doc["video"]]


def doc_to_text(doc):
    return doc["prompt"]


def process_results(doc, results):
    return {"correct": float(results[0].strip().rstrip(".").strip("()") == doc["truth"])}
'''


def write_task(benchmark: str, folder: Path, max_new_tokens: int, strategy: str = "letter") -> int:
    """Writes a task for `lmms_eval --include_path folder --tasks codecvit_local`.

    Args:
      benchmark: folder that `codecvit llava eval` reads; its questions must be about whole videos.
      folder: of the task's files.
      max_new_tokens: of a reply.
      strategy: how `codecvit llava eval` asks.

    Returns:
      The number of questions.

    Raises:
      ValueError: a question is about a part of its video, which lmms-eval's tasks cannot state.
    """
    asks = strategy_named(strategy)
    rows = []
    for question in read_questions(benchmark, None)[0]:
        if not question.span.whole:
            raise ValueError(f"question {question.id} is about a part of {question.video}")
        rows.append(
            {
                "index": question.index,
                "video": str((Path(benchmark) / question.video).absolute()),
                "prompt": asks.prompt(question),
                "truth": question.letters[question.answer],
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    listing = (folder / "questions.jsonl").absolute()
    write_atomic(listing, b"".join(map(json_line, rows)))
    values = {"task": TASK, "rows": json.dumps(str(listing)), "limit": max_new_tokens}
    write_atomic(folder / f"{TASK}.yaml", _YAML.format(**values).encode())
    write_atomic(folder / "utils.py", _UTILS.encode())
    return len(rows)


def compare(own: Path, other: Path) -> list[str]:
    """The questions that two evaluations answered differently.

    Args:
      own: --out of `codecvit llava eval`.
      other: --output_path of lmms-eval, run with --log_samples.

    Returns:
      A line for each.

    Raises:
      ValueError: there are no samples, or not those of the same questions.
    """
    ours = {record["index"]: record["reply"] for record in read_results(own)[1]}
    theirs: dict[int, Any] = {}
    files = sorted(other.rglob(f"*samples_{TASK}.jsonl"))
    if not files:
        raise ValueError(f"{other} holds no samples of {TASK}: lmms-eval needs --log_samples")
    for line in files[-1].read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        reply = sample["filtered_resps"]
        while isinstance(reply, list):
            reply = reply[0]
        theirs[int(sample["doc"]["index"] if "doc" in sample else sample["doc_id"])] = reply
    if ours.keys() != theirs.keys():
        raise ValueError(f"{own} has {len(ours)} questions, {files[-1]} has {len(theirs)}")
    return [
        f"question {index}: {ours[index]!r} here, {theirs[index]!r} by lmms-eval"
        for index in sorted(ours)
        if ours[index] != theirs[index]
    ]


def main(argv: list[str]) -> int:
    """0; 1 if answers differ; 2 for what cannot work."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    write = verbs.add_parser("write")
    write.add_argument("--benchmark", required=True)
    write.add_argument("--out", type=Path, required=True)
    write.add_argument("--max-new-tokens", type=int, default=16)
    both = verbs.add_parser("compare")
    both.add_argument("own", type=Path)
    both.add_argument("other", type=Path)
    args = parser.parse_args(argv)
    try:
        if args.verb == "write":
            count = write_task(args.benchmark, args.out, args.max_new_tokens)
            print(f"{args.out}: task {TASK}, {count} questions")
            return 0
        differing = compare(args.own, args.other)
    except (ValueError, OSError) as error:
        print(f"local_task: {error}", file=sys.stderr)
        return 2
    for line in differing:
        print(line)
    answered = len(read_results(args.own)[1])
    print(f"{answered - len(differing)} of {answered} answers are the same")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
