"""k-NN and linear probe of frozen embeddings, inside training and alone.

    codecvit probe ENCODER --train RECORDS --test RECORDS --labels motion [digit ...] [--out
    results.json] codecvit probe --descriptor --train RECORDS --test RECORDS --labels motion

ENCODER is a work directory, one checkpoint or an exported folder. `--descriptor` probes the
training-free descriptor that the records carry, the baseline that an encoder has to beat.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ..data.pipeline import iterate_once
from ..data.records import RecordSet, load_labels
from ..evaluators.knn import knn
from ..evaluators.linear_probe import linear_probe
from ..models.vit import ViT, ViTConfig
from .config import ProbeConfig
from .mesh import put_batch

Embed = Callable[[dict[str, np.ndarray]], np.ndarray]


class Probe:
    """Probes the encoder of a run on two labelled record sets.

    Args:
      config: record sets, label column, batch size.
      mesh: the run's mesh; rows of a batch are spread over it.

    Raises:
      ValueError: a record set or its labels can't be read.
    """

    def __init__(self, config: ProbeConfig, mesh: Mesh) -> None:
        self._config, self._mesh = config, mesh
        self._sets = [RecordSet(config.train_records), RecordSet(config.test_records)]
        for records in self._sets:
            load_labels(records, config.labels)
        self._apply: Any = None

    def __call__(self, model: ViTConfig, params: Any) -> dict[str, float]:
        """Accuracies of the pooled embedding.

        Args:
          model: the encoder's configuration.
          params: its parameters, laid out over the mesh.

        Returns:
          knn_top1, linear_top1 in 0..1 and their chance level.
        """
        if self._apply is None:
            vit = ViT(model)
            self._apply = jax.jit(
                lambda p, b: vit.apply({"params": p}, b["patches"], b["positions"], b["length"])[
                    "pooled"
                ]
            )

        def embed(batch: dict[str, np.ndarray]) -> np.ndarray:
            inputs = {key: batch[key] for key in ("patches", "positions", "length")}
            pooled = self._apply(params, put_batch(inputs, self._mesh))
            return np.asarray(jax.device_get(pooled), np.float32)

        features = [
            embed_records(records, embed, self._config.batch_size) for records in self._sets
        ]
        return evaluate(self._sets, features, self._config.labels)


def embed_records(records: RecordSet, embed: Embed, batch_size: int) -> np.ndarray:
    """Embeddings of a whole record set, in its order.

    Args:
      records: the set.
      embed: batch -> float32 [B, D].
      batch_size: rows at once; the last batch is padded.

    Returns:
      float32 [records, D].
    """
    budget = -(-records.manifest["tokens"]["max"] // 64) * 64
    rows = []
    for batch in iterate_once(records, batch_size=batch_size, budget=budget):
        rows.append(embed(batch)[batch["index"] >= 0])
    return np.concatenate(rows)


def evaluate(sets: list[RecordSet], features: list[np.ndarray], labels: str) -> dict[str, float]:
    """Both probes of one label column.

    Args:
      sets: training and test set.
      features: their embeddings, float32 [records, D].
      labels: the label column.

    Returns:
      knn_top1, linear_top1, chance (share of the largest class of the test set), all in 0..1.
    """
    known, asked = (load_labels(records, labels) for records in sets)
    # Each set numbers the classes that it has; names make the numbers agree.
    answers = asked.values if known.classes is None else asked.in_classes(known.classes)
    data = (features[0], known.values[:, 0], features[1], answers[:, 0])
    counts = np.bincount(answers[answers >= 0], minlength=known.num_classes)
    return {
        "knn_top1": knn(*data, num_classes=known.num_classes)["top1"],
        "linear_top1": linear_probe(*data, num_classes=known.num_classes)["top1"],
        "chance": float(counts.max() / counts.sum()),
    }


def descriptor_features(records: RecordSet) -> np.ndarray:
    """The training-free descriptors that the records carry, float32 [records, d]."""
    return np.stack([records[i].descriptor for i in range(len(records))])


def main(argv: list[str]) -> int:
    """The verb `probe`."""
    parser = argparse.ArgumentParser(
        prog="codecvit probe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("encoder", nargs="?", help="work directory, checkpoint or exported folder")
    parser.add_argument("--descriptor", action="store_true", help="probe the records' descriptor")
    parser.add_argument("--train", required=True, help="record set that the probes are fitted on")
    parser.add_argument("--test", required=True, help="record set that they are measured on")
    parser.add_argument("--labels", nargs="+", required=True, help="label columns of both sets")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", type=Path, help="write the results as JSON too")
    args = parser.parse_args(argv)
    if (args.encoder is None) == (not args.descriptor):
        parser.error("give either ENCODER or --descriptor")
    try:
        sets = [RecordSet(args.train), RecordSet(args.test)]
        if args.descriptor:
            features = [descriptor_features(records) for records in sets]
        else:
            # Imported here: `convert.load` reads checkpoints through this package.
            from ..convert.load import load

            encoder = load(args.encoder)
            features = [embed_records(records, encoder.embed, args.batch_size) for records in sets]
        results = {labels: evaluate(sets, features, labels) for labels in args.labels}
    except ValueError as error:
        print(f"codecvit probe: {error}", file=sys.stderr)
        return 1
    for labels, scores in results.items():
        print(
            f"{labels}: k-NN {scores['knn_top1']:.1%}, linear {scores['linear_top1']:.1%} "
            f"(chance {scores['chance']:.1%})"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
