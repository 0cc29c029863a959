"""The demo: a Ti with 4 blocks on the made digit clips, minutes on two CPU cores.

    bash scripts/demo.sh

runs, for MODE = codec and frames,

    codecvit train --config=src/configs/demo.py:data=demo_out/records,mode=MODE --workdir=WORKDIR

Arguments: data, the folder with train/MODE and, for the probes, test/MODE; mode; labels, label
files joined by "+"; classes, the number of their clusters together; drawn, labels per sample;
steps; seed; probes, label columns joined by "+" (empty for none).
Expected result: docs/benchmarks.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from codecvit.configs.common import add_defaults
from codecvit.configs.fields import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The configuration; see the file's docstring for `arg`."""
    arg = parse_arg(
        arg,
        data="demo_out/records",
        mode="codec",
        labels="clusters+shapes",
        classes=32,
        drawn=2,
        steps=600,
        seed=0,
        probes="motion+digit",
    )
    train, test = f"{arg.data}/train/{arg.mode}", f"{arg.data}/test/{arg.mode}"
    config = ConfigDict()
    config.model = ConfigDict({"variant": "Ti/14", "depth": 4, "dtype": "auto"})
    config.sources = ConfigDict(
        {
            "video": {
                "records": train,
                "batch_size": 16,
                "budget": 128,
                "labels": arg.labels,
                "labels_drawn": arg.drawn,
            }
        }
    )
    # A margin is for telling millions of classes apart; with a few dozen it only delays the start.
    head = {"num_classes": arg.classes, "margin": 0.0, "lr_mult": 0.3}
    config.heads = ConfigDict({"main": head})
    config.total_steps = arg.steps
    # Minutes on a CPU are a few hundred steps: AdamW alone learns one of motion and digit in them.
    config.optim = ConfigDict(
        {
            "name": "muon",
            "lr": 1e-3,
            "muon_lr": 0.02,
            "b2": 0.95,
            "warmup_steps": arg.steps // 20,
            "schedule": "cosine",
        }
    )
    config.checkpoint = ConfigDict({"every_steps": 50, "keep": 2})
    config.probes = ConfigDict(
        {
            column: {
                "train_records": train,
                "test_records": test,
                "labels": column,
                "every_steps": 1_000_000,
            }
            for column in arg.probes.split("+")
            if column
        }
    )
    config.seed = arg.seed
    config.log_steps = 25
    return add_defaults(config)
