"""Names of public benchmarks, and where lmms-eval keeps their videos."""

from __future__ import annotations

from pathlib import Path

import pytest

from codecvit.llava.benchmarks.tasks import (
    BENCHMARKS,
    benchmark_of,
    benchmarks_named,
    hf_home,
    lmms_tasks,
    offline_folders,
)


def test_names_are_those_of_lmms_eval_and_their_short_ones():
    assert {b.short: b.task for b in BENCHMARKS if b.short} == {
        "perceptiontest": "perceptiontest_val_mc",
        "nextqa": "nextqa_mc_test",
        "temporalbench": "temporalbench_long_qa",
        "longvideobench": "longvideobench_val_v",
    }
    assert {b.task for b in BENCHMARKS if not b.short} == {
        *("videomme", "mvbench", "video_mmmu", "tomato", "mlvu_dev", "egoschema"),
        *("ai2d", "chartqa", "docvqa_val"),
    }
    assert {b.task for b in BENCHMARKS if not b.has_videos} == {"ai2d", "chartqa", "docvqa_val"}
    assert [b.task for b in benchmarks_named("nextqa, ai2d,nextqa_mc_test")] == [
        *("nextqa_mc_test", "ai2d")
    ]
    assert lmms_tasks("temporalbench,mmmu_val,ai2d") == [
        *("temporalbench_long_qa", "mmmu_val", "ai2d")
    ]
    assert len(benchmarks_named("all")) == len(lmms_tasks("all")) == len(BENCHMARKS) == 13
    assert benchmark_of("mvbench_action_count").task == "mvbench"
    assert benchmark_of("video_mmmu_perception").task == "video_mmmu"
    assert benchmark_of("nextqa_oe_test") is None and benchmark_of("mmmu_val") is None
    with pytest.raises(ValueError, match="no benchmark 'videomm'; there are videomme"):
        benchmarks_named("videomm")
    for text in ("", " , "):
        with pytest.raises(ValueError, match="named"):
            benchmarks_named(text)
        with pytest.raises(ValueError, match="named"):
            lmms_tasks(text)


def test_folders_by_task():
    home = Path("/h")
    assert offline_folders(["nextqa_mc_test", "ai2d", "mvbench_action_count", "mvbench"], home) == [
        *(home / "nextqa_mc_test_offline", home / "mvbench_offline")
    ]
    assert hf_home({"HF_HOME": "/h"}) == home
    assert hf_home({}) == Path("~/.cache/huggingface").expanduser()
