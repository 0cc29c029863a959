"""k-NN and linear probe of frozen embeddings, inside training and alone.

    codecvit probe-records ENCODER --train RECORDS --test RECORDS --labels motion [digit ...]
    codecvit probe-records --descriptor --train RECORDS --test RECORDS --labels motion

ENCODER is a work directory, one checkpoint or an exported folder. `--descriptor` probes the
training-free descriptor that the records carry, the baseline that an encoder has to beat.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ...cluster.features import Features, descriptors, embeddings, encoder_embed
from ...data.records import RecordSet, load_labels
from ...evaluators.knn import knn
from ...evaluators.linear_probe import linear_probe
from ...models.config import ViTConfig
from ...models.vit import ViT
from ..mesh import put_whole_batch
from ..pretrain_config import ProbeConfig


class RecordProbe:
    """Probes the encoder of a run on two labelled record sets.

    Args:
      config: record sets, label column, batch size.
      mesh: the run's mesh; rows of a batch are spread over it.

    Raises:
      ValueError: a record set or its labels can't be read, or the batch doesn't fit the mesh.
    """

    def __init__(self, config: ProbeConfig, mesh: Mesh) -> None:
        if config.batch_size % mesh.size:
            raise ValueError(
                f"a probe's batch_size = {config.batch_size} must be a multiple of the {mesh.size} "
                f"devices ({config.test_records})"
            )
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
                ],
                out_shardings=NamedSharding(self._mesh, PartitionSpec()),  # all rows to all
            )

        def embed(batch: dict[str, np.ndarray]) -> np.ndarray:
            inputs = {key: batch[key] for key in ("patches", "positions", "length")}
            pooled = self._apply(params, put_whole_batch(inputs, self._mesh))
            return np.asarray(jax.device_get(pooled), np.float32)

        features = [
            embeddings(records, embed, self._config.batch_size, silent=True)
            for records in self._sets
        ]
        return evaluate(self._sets, features, self._config.labels)


def evaluate(sets: list[RecordSet], features: list[Features], labels: str) -> dict[str, float]:
    """Both probes of one label column.

    Args:
      sets: training and test set.
      features: those of their records. An unreadable training record is left out; an unreadable
        test record keeps its row of zeros and so hardly ever counts as right.
      labels: the label column.

    Returns:
      knn_top1, linear_top1, chance (share of the largest class of the test set), all in 0..1.
    """
    known, asked = (load_labels(records, labels) for records in sets)
    # Each set numbers the classes that it has; names make the numbers agree.
    answers = asked.values if known.classes is None else asked.in_classes(known.classes)
    train, test = features
    targets = np.where(train.readable_N, known.values[:, 0], -1).astype(np.int32)
    data = (train.rows_ND, targets, test.rows_ND, answers[:, 0])
    counts = np.bincount(answers[answers >= 0], minlength=known.num_classes)
    return {
        "knn_top1": knn(*data, num_classes=known.num_classes)["top1"],
        "linear_top1": linear_probe(*data, num_classes=known.num_classes)["top1"],
        "chance": float(counts.max() / counts.sum()),
    }


def main(argv: list[str]) -> int:
    """The verb `probe-records`."""
    parser = argparse.ArgumentParser(
        prog="codecvit probe-records",
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
            features = [descriptors(records) for records in sets]
        else:
            embed = encoder_embed(args.encoder)
            features = [embeddings(records, embed, args.batch_size) for records in sets]
        results = {labels: evaluate(sets, features, labels) for labels in args.labels}
    except ValueError as error:
        print(f"codecvit probe-records: {error}", file=sys.stderr)
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
