"""Which benchmarks there are: names of their tasks in lmms-eval, and where their videos lie.

Read off the task files of lmms-eval 0.7.3; nothing is imported from it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A task of lmms-eval.

    Attributes:
      task: its name there.
      short: another name that is taken everywhere; "" for none.
      cache: folder below HF_HOME where lmms-eval looks for the videos; "" for tasks of images.
      hub: the data set on the hub.
      revision: branch of it.
    """

    task: str
    short: str = ""
    cache: str = ""
    hub: str = ""
    revision: str = "main"

    @property
    def has_videos(self) -> bool:
        """Whether there are assets to make; images are read as they are."""
        return bool(self.cache)

    @property
    def offline(self) -> str:
        """Name of the folder of its assets."""
        return f"{self.task}_offline"

    def covers(self, task: str) -> bool:
        """Whether a task is this one, or part of it: groups consist of tasks `<group>_<part>`."""
        return task in (self.task, self.short) or task.startswith(f"{self.task}_")


BENCHMARKS = (
    Benchmark("videomme", "", "videomme", "lmms-eval/Video-MME"),
    Benchmark("mvbench", "", "mvbench_video", "OpenGVLab/MVBench", "video"),
    Benchmark(
        "perceptiontest_val_mc",
        "perceptiontest",
        "perceptiontest_val",
        "lmms-eval/PerceptionTest_Val",
    ),
    Benchmark("nextqa_mc_test", "nextqa", "nextqa", "lmms-eval/NExTQA"),
    Benchmark("temporalbench_long_qa", "temporalbench", "temporalbench", "microsoft/TemporalBench"),
    Benchmark("video_mmmu", "", "video_mmmu", "lmms-eval/VideoMMMU"),
    Benchmark("tomato", "", "TOMATO", "lmms-eval/TOMATO"),
    Benchmark(
        "longvideobench_val_v",
        "longvideobench",
        "datasets/longvideobench",
        "longvideobench/LongVideoBench",
    ),
    Benchmark("mlvu_dev", "", "mlvu", "sy1998/MLVU_dev"),
    Benchmark("egoschema", "", "egoschema", "lmms-eval/egoschema"),
    Benchmark("ai2d"),
    Benchmark("chartqa"),
    Benchmark("docvqa_val"),
)


def benchmarks_named(text: str) -> list[Benchmark]:
    """The benchmarks of a list such as "videomme,nextqa"; "all" is every one.

    Raises:
      ValueError: a name that is none.
    """
    if text.strip() == "all":
        return list(BENCHMARKS)
    found = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        match = [b for b in BENCHMARKS if name in (b.task, b.short)]
        if not match:
            known = ", ".join(f"{b.task} ({b.short})" if b.short else b.task for b in BENCHMARKS)
            raise ValueError(f"no benchmark {name!r}; there are {known}, and all")
        found += match
    if not found:
        raise ValueError("no benchmark is named: give one, several with commas, or all")
    return list(dict.fromkeys(found))


def benchmark_of(task: str) -> Benchmark | None:
    """The benchmark that a task of lmms-eval belongs to; None if it is not of the table."""
    return next((b for b in BENCHMARKS if b.covers(task)), None)


def lmms_tasks(text: str) -> list[str]:
    """Names as lmms-eval takes them: short names resolved, tasks that are not in the table kept.

    Raises:
      ValueError: none is named.
    """
    names: list[str] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name == "all":
            names += [b.task for b in BENCHMARKS]
        else:
            names.append(next((b.task for b in BENCHMARKS if name == b.short), name))
    if not names:
        raise ValueError("no task is named: give one, several with commas, or all")
    return list(dict.fromkeys(names))


def hf_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder that HF_HOME names, or its default."""
    return Path(environ.get("HF_HOME") or "~/.cache/huggingface").expanduser().absolute()


def video_folder(benchmark: Benchmark, home: Path) -> Path:
    """Where lmms-eval looks for the videos of a benchmark."""
    return home / benchmark.cache


def offline_folders(tasks: Iterable[str], home: Path) -> list[Path]:
    """The folders of assets that tasks need; none for those of images, or not in the table."""
    found = (benchmark_of(task) for task in tasks)
    return list(dict.fromkeys(home / b.offline for b in found if b is not None and b.has_videos))
