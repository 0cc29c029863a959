"""A run of milliseconds for tests that start real processes."""

from ml_collections import ConfigDict

from codecvit.configs.common import add_defaults
from codecvit.configs.fields import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, records="", steps=20, save=5, data=-1, keep=3, probe=False)
    config = ConfigDict(
        {
            "model": {"variant": "Ti/14", "width": 64, "depth": 2, "num_heads": 1, "mlp_dim": 96},
            "sources": {
                "video": {"records": arg.records, "batch_size": 8, "budget": 16, "labels_drawn": 2}
            },
            "heads": {"main": {"num_classes": 12}},
            "total_steps": arg.steps,
            "optim": {"lr": 1e-3, "warmup_steps": 2},
            "checkpoint": {"every_steps": arg.save, "keep": arg.keep},
            "log_steps": 1,
            "mesh": {"data": arg.data},
        }
    )
    if arg.probe:
        probe = {"train_records": arg.records, "test_records": arg.records, "labels": "colour"}
        config.probes = ConfigDict({"colour": {**probe, "batch_size": 8, "every_steps": 2}})
    return add_defaults(config)
