"""Pretrains a ViT on one record set of videos by cluster discrimination.

    codecvit pack VIDEOS --out records --mode codec
    codecvit cluster records/codec --name clusters --k 1000 --n 10
    codecvit train --config=src/configs/pretrain_video.py:records=records/codec --workdir=runs/video

Arguments: variant (Ti, S, B, L or H, with patch 14 or 16, such as L/14), records, labels, classes,
budget, batch_size, steps.
Cost, an estimate (docs/chip_hours.md: analytic FLOPs at 40 % of an H200's peak): 356 GPU hours with
the defaults (L/14, 102 million clips of 2,048 tokens at 5.0 TFLOP each), 704 for H/14. Expected
result: none yet, nothing of that size has been run with this file.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from codecvit.configs.common import add_defaults
from codecvit.configs.fields import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The configuration; see the file's docstring for `arg`."""
    arg = parse_arg(
        arg,
        variant="L/14",
        records="records/codec",
        labels="clusters",
        classes=1000,
        budget=2048,
        batch_size=1024,
        steps=100_000,
    )
    config = ConfigDict()
    config.model = ConfigDict({"variant": arg.variant, "dtype": "auto", "remat": "none"})
    config.sources = ConfigDict(
        {
            "video": {
                "records": arg.records,
                "batch_size": arg.batch_size,
                "budget": arg.budget,
                "labels": arg.labels,
                "labels_drawn": 8,
                "loader_workers": 8,
            }
        }
    )
    config.heads = ConfigDict({"main": {"num_classes": arg.classes}})
    config.total_steps = arg.steps
    config.optim = ConfigDict({"lr": 1e-3, "warmup_steps": arg.steps // 20, "schedule": "linear"})
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.checkpoint = ConfigDict({"every_steps": 1000, "keep": 3})
    config.probes = ConfigDict()
    config.seed = 0
    config.log_steps = 50
    return add_defaults(config)
