"""The verb `cluster`: record sets -> k-means centres -> labels/NAME.npy in each of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from ..codec.descriptor import SIZES
from ..data.labels import check_label_name, label_files, save_labels
from ..data.records import RecordSet
from ..files import write_atomic
from .feature_files import read_features, read_rows
from .features import Features, descriptors, embeddings, encoder_embed
from .kmeans import kmeans
from .labels import (
    Centres,
    agreement,
    assign,
    centres_path,
    check_free,
    load_centres,
    save_centres,
)

DESCRIPTION = """\
Groups the records of one or several record sets by k-means and gives each record its nearest
centres as labels.

Features are the descriptors that the records carry, with --encoder the embeddings of a trained
encoder, or with --features those of any model, from a file. Several sets (for example the codec,
frames and collage sets of the same clips) share the centres; each gets its own labels/NAME.npy.
Records are not rewritten and no video is opened. --centres gives labels by centres that an earlier
call made, for example for a test set. Without RECORDS the rows of a feature file are clustered by
themselves; --out gets the labels, in the order of the rows, and the centres. A call that was killed
goes on from NAME.progress.safetensors beside the labels (of the first set) when it is repeated.

Several clusterings can teach one head: `labels=a+b` in a training configuration puts labels/a.npy
and labels/b.npy side by side."""


def main(argv: list[str]) -> int:
    """Runs the verb.

    Args:
      argv: arguments after `codecvit cluster`.

    Returns:
      0, or 1 after printing what was wrong with the input.
    """
    args = _parser().parse_args(argv)
    try:
        _run(args)
    except ValueError as error:
        print(f"codecvit cluster: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit cluster",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("records", nargs="*", metavar="RECORDS", help="folder of a record set")
    parser.add_argument("--out", metavar="DIR", help="without RECORDS: folder for the labels")
    parser.add_argument("--name", required=True, help="the labels become labels/NAME.npy")
    centres = parser.add_mutually_exclusive_group(required=True)
    centres.add_argument("--k", type=int, help="number of clusters")
    centres.add_argument("--centres", metavar="FILE", help="labels/NAME.centres.safetensors to use")
    parser.add_argument(
        "--n", type=int, default=10, help="nearest centres kept per record (default %(default)s)"
    )
    features = parser.add_mutually_exclusive_group()
    features.add_argument(
        "--encoder", metavar="PATH", help="work directory, checkpoint or exported folder"
    )
    features.add_argument(
        "--features",
        metavar="FILE",
        help="NAME.npy with NAME.keys.txt beside it (a record key per line), a .parquet with the "
        "columns key and feature, or what `codecvit embed` wrote",
    )
    features.add_argument(
        "--part", choices=tuple(SIZES), help="cluster one part of the descriptors alone"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=32,
        help="records per embedding step (default %(default)s)",
    )
    parser.add_argument(
        "--mini-batch",
        type=int,
        default=0,
        metavar="ROWS",
        help="move the centres after each random batch of so many rows: fewer passes over many "
        "rows (default: after each pass)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the seeding (default %(default)s)")
    parser.add_argument(
        "--iterations",
        type=int,
        default=20,
        help="updates, or passes, at most (default %(default)s)",
    )
    parser.add_argument(
        "--init",
        choices=("k-means++", "random"),
        default="k-means++",
        help="first centres; k-means++ costs k passes, random none (default %(default)s)",
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    if args.k is not None and not 1 <= args.n <= args.k:  # said before the features cost minutes
        raise ValueError(f"--n {args.n}: choose 1 <= n <= k, which is {args.k}")
    check_label_name(args.name)
    if not args.records:
        _label_rows(args)
        return
    if args.out:
        raise ValueError(f"--out {args.out}: the labels of RECORDS lie beside the records")
    record_sets = [RecordSet(path) for path in args.records]
    for record_set in record_sets:
        check_free(record_set, args.name)
    given = _given_centres(args) if args.centres else None
    features = _features(record_sets, args)
    progress = record_sets[0].path / "labels" / f"{args.name}.progress.safetensors"
    centres = given or _found_centres(features, args, progress)

    for record_set, rows in zip(record_sets, features, strict=True):
        labels_Nn = assign(rows, centres.centres_KD, args.n, _all_devices())
        path = save_labels(record_set, args.name, labels_Nn, _label_meta(centres, args))
        save_centres(centres_path(record_set, args.name), centres)
        print(_sizes(labels_Nn, len(centres.centres_KD), path))
        for column, value in agreement(record_set, labels_Nn).items():
            print(f"  NMI with {column}: {value.nmi:.3f} (shuffled labels: {value.shuffled:.3f})")
    if given is None:
        progress.unlink(missing_ok=True)  # not before: writing the labels may take a pass too


def _label_rows(args: argparse.Namespace) -> None:
    """Clusters a feature file that belongs to no record set."""
    if not (args.features and args.out):
        raise ValueError("give RECORDS, or --features FILE and --out DIR for a file by itself")
    given = _given_centres(args) if args.centres else None
    _, rows_ND = read_rows(Path(args.features))
    features = Features(rows_ND, np.ones(len(rows_ND), bool))
    folder = Path(args.out)
    progress = folder / f"{args.name}.progress.safetensors"
    centres = given or _found_centres([features], args, progress)
    labels_Nn = assign(features, centres.centres_KD, args.n, _all_devices())
    # No shard hash: no record set will take these rows for its own.
    files = label_files(args.name, labels_Nn, _label_meta(centres, args), len(rows_ND), "")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_atomic(folder / name, data)
    save_centres(folder / f"{args.name}.centres.safetensors", centres)
    print(_sizes(labels_Nn, len(centres.centres_KD), folder / f"{args.name}.npy"))
    if given is None:
        progress.unlink(missing_ok=True)


def _label_meta(centres: Centres, args: argparse.Namespace) -> dict[str, Any]:
    return {
        **centres.meta,
        "origin": "clusters",
        "centres_sha256": centres.digest,
        "num_classes": len(centres.centres_KD),
        "encoder": args.encoder,  # of these rows, where the centres were given
        "file": args.features,
    }


def _all_devices() -> Mesh:
    return jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))


def _features(record_sets: Sequence[RecordSet], args: argparse.Namespace) -> list[Features]:
    if args.features:
        return [read_features(args.features, record_set) for record_set in record_sets]
    if args.encoder is None:
        return [descriptors(record_set, args.part) for record_set in record_sets]
    embed = encoder_embed(args.encoder)
    return [embeddings(record_set, embed, args.batch_size) for record_set in record_sets]


def _kind(args: argparse.Namespace) -> str:
    """What the features are: `file`, `encoder`, `descriptor` or `descriptor/PART`."""
    if args.features:
        return "file"
    if args.encoder:
        return "encoder"
    return f"descriptor/{args.part}" if args.part else "descriptor"


def _given_centres(args: argparse.Namespace) -> Centres:
    centres = load_centres(args.centres)
    kind = _kind(args)
    if centres.meta["features"] != kind:
        raise ValueError(
            f"--centres {args.centres}: made from {centres.meta['features']} features, these are "
            f"{kind} features: give --features, --encoder and --part to both calls or to neither"
        )
    return centres


def _found_centres(
    features: Sequence[Features], args: argparse.Namespace, progress: Path
) -> Centres:
    widths = {rows.rows_ND.shape[1] for rows in features}
    if len(widths) > 1:
        raise ValueError(f"the record sets have features of different lengths {sorted(widths)}")
    if len(features) == 1 and features[0].readable_N.all():
        rows_ND = features[0].rows_ND  # a memory-mapped file stays one
    else:
        rows_ND = np.concatenate([rows.rows_ND[rows.readable_N] for rows in features])
    found = kmeans(
        rows_ND,
        args.k,
        seed=args.seed,
        iterations=args.iterations,
        init=args.init,
        batch_rows=args.mini_batch,
        mesh=_all_devices(),
        progress=progress,
    )
    # Rows and centres have unit length: squared distance = 2 - 2 cos.
    cosine = 1 - found.inertia[-1] / len(rows_ND) / 2
    print(
        f"k-means: {len(rows_ND)} rows of {rows_ND.shape[1]} features, k = {args.k}, "
        f"{len(found.inertia) - 1} updates on {jax.device_count()} device(s), "
        f"{int((found.counts_K == 0).sum())} empty clusters\n"
        f"  inertia {found.inertia[0]:.4g} -> {found.inertia[-1]:.4g}, "
        f"mean cosine with the nearest centre {cosine:.3f}"
    )
    meta: dict[str, Any] = {
        "features": _kind(args),
        "encoder": args.encoder,
        "file": args.features,
        "mini_batch": args.mini_batch,
        "records": [str(path) for path in args.records],
        "rows": len(rows_ND),
        "k": args.k,
        "seed": args.seed,
        "init": args.init,
        "inertia": found.inertia,
    }
    return Centres(found.centres_KD, meta)


def _sizes(labels_Nn: np.ndarray, k: int, path: Path) -> str:
    known_N = labels_Nn[:, 0] >= 0
    sizes_K = np.bincount(labels_Nn[known_N, 0], minlength=k)
    return (
        f"{path}: {len(labels_Nn)} rows, {labels_Nn.shape[1]} label(s) each, "
        f"{int((~known_N).sum())} unreadable\n"
        f"  cluster sizes: min {sizes_K.min()}, median {np.median(sizes_K):g}, max {sizes_K.max()}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
