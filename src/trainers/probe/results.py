"""What a finished probe leaves in its work directory."""

from __future__ import annotations

from typing import Any

from ... import __version__
from ...evaluators.outcomes import measure
from .config import AttentiveProbeConfig
from .encoders import FrozenEncoder
from .examples import ProbeData
from .scores import TestScores

RESULTS = "results.json"
OUTCOMES = "test.npz"
LEFT_OUT = "left_out.json"


def describe(
    config: AttentiveProbeConfig,
    data: ProbeData,
    encoder: FrozenEncoder,
    state: dict[str, Any],
    test: TestScores,
) -> dict[str, Any]:
    """What results.json says."""
    best, missing = state["best"], len(data.test.missing)
    return {
        "version": __version__,
        "dataset": data.name,
        "metric": data.metric,
        "num_classes": data.num_classes,
        "encoder": config.label or config.encoder,
        "input": config.input,
        "mode": data.test.views[0].manifest["mode"],
        "tokens": encoder.tokens,
        "views": len(data.test.views),
        "seed": config.seed,
        "lr": config.lrs[int(best["rate"])],
        "epoch": int(best["epoch"]),
        "val": {data.metric: float(best["score"])},
        "test": measure(test.outcomes),
        "test_examples": len(data.test.keys),
        "test_missing": missing,
        "test_unreadable": int((~test.seen_N).sum()) - missing,
        "train_examples": len(data.train.keys),
        "train_missing": len(data.train.missing),
        "train_unreadable_rows": int(state["bad_records"]),
        "nan_steps": state["nan_steps"].tolist(),
    }


def left_out(data: ProbeData, test: TestScores) -> dict[str, list[str]]:
    """Keys of the examples that no record stands for, and of test examples that can't be read."""
    unseen = [key for key, seen in zip(data.test.keys, test.seen_N, strict=True) if not seen]
    missing = set(data.test.missing)
    return {
        "train_missing": data.train.missing,
        "test_missing": sorted(missing),
        "test_unreadable": [key for key in unseen if key not in missing],
    }
