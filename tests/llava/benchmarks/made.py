"""Calls of the verbs and of the plugin, and a small stand-in of lmms-eval's interface."""

from __future__ import annotations

import json
import types
from pathlib import Path

from codecvit.codec.llava.cli import main
from codecvit.llava.benchmarks.tasks import benchmarks_named
from codecvit.llava.mcq.parse import strategy_named
from codecvit.llava.mcq.questions import read_questions

PACKING = ["--workers", "0", "--num-frames", "8", "--num-images", "2", "--size", "64"]
NEXTQA = benchmarks_named("nextqa")[0]

MOSAICS = ["--num-frames", "16", "--num-images", "3", "--size", "64"]
SMALL = {"num_frames": 16, "num_images": 3, "size": 64}
MODULE = "codecvit.llava.benchmarks.lmms_model"

STAND_IN = {
    "lmms_eval/__init__.py": "",
    "lmms_eval/api/__init__.py": "",
    "lmms_eval/api/model.py": """
import abc

class Hook:
    def __init__(self):
        self.seen = []
    def add_partial(self, attr, req, res):
        self.seen.append((attr, req, res))

class lmms(abc.ABC):
    def __init__(self):
        self._rank, self._world_size, self.cache_hook, self.task_dict = 0, 1, Hook(), {}
    rank = property(lambda self: self._rank)
    @abc.abstractmethod
    def loglikelihood(self, requests): ...
    @abc.abstractmethod
    def generate_until(self, requests): ...
    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...
""",
    "lmms_eval/api/instance.py": "class Instance: ...\n",
    "lmms_eval/models/__init__.py": "",
    "lmms_eval/models/registry_v2.py": """
import dataclasses

@dataclasses.dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple = ()
""",
}


def benchmark(*arguments):
    return main(["benchmark", *map(str, arguments), *PACKING])


def ask(model, docs, method="generate_until", task="mine", **options):
    """Puts documents ({"show", "text"}) through a method, as the evaluator does."""
    model.task_dict[task] = {"test": docs}
    second = [{"max_new_tokens": 6, **options} if method == "generate_until" else d for d in docs]
    if method == "loglikelihood":
        second = [lambda doc: doc["target"] for _ in docs]
    requests = [
        types.SimpleNamespace(
            args=(doc["text"], second[i], lambda doc: doc["show"], i, task, "test")
        )
        for i, doc in enumerate(docs)
    ]
    return getattr(model, method)(requests)


def video_docs(bench):
    questions = read_questions(str(bench), None)[0]
    strategy = strategy_named("letter")
    return [
        {"show": [str(bench / q.video)], "text": strategy.prompt(q), "id": q.id} for q in questions
    ]


def results(folder):
    folder = Path(folder)
    records = [json.loads(x) for x in (folder / "requests-rank0.jsonl").read_text().splitlines()]
    return json.loads((folder / "visuals-rank0.json").read_text()), records
