"""`codecvit clusters show`: what the clusters hold, and how samples gather at them.

    codecvit clusters show RECORDS --labels NAME --out sheet.png [--encoder PATH]
    codecvit clusters show RECORDS --labels NAME --out gather.png --workdir RUN --head main

The first draws, for some clusters, the members nearest to their centre and farthest from it. The
second embeds a sample of the records with each checkpoint of a run, and draws samples and class
centres in two dimensions, a panel per checkpoint: samples on their centre have learned it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.inspect import draw_record
from ..data.labels import load_labels
from ..data.records import RecordSet
from .features import Features, descriptors, embeddings, encoder_embed
from .labels import Centres, centres_path, load_centres
from .nearest import unit_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GAP, _TEXT = 8, 20
_PAPER, _INK = (255, 255, 255), (20, 20, 20)
_TILE = 120  # height of a record's row of frames
_REMARK = 220  # pixels that a heading takes where there are no pictures below it


class Members(NamedTuple):
    """One cluster on a contact sheet.

    Attributes:
      cluster: its number.
      size: how many records are nearest to it.
      nearest, farthest: record numbers, the nearest and the farthest first.
      cosine: of the nearest and of the farthest with the centre.
    """

    cluster: int
    size: int
    nearest: list[int]
    farthest: list[int]
    cosine: tuple[float, float]


def members(
    features: Features, centres: Centres, nearest_N: np.ndarray, clusters: int, count: int
) -> list[Members]:
    """The clusters of a sheet, evenly spread from the largest to the smallest that has members.

    Args:
      features: of the record set, as they were clustered.
      centres: the clusters.
      nearest_N: int [records], each record's cluster; -1 = none.
      clusters: how many to take.
      count: members at either end of each.
    """
    sizes_K = np.bincount(nearest_N[nearest_N >= 0], minlength=len(centres.centres_KD))
    by_size = np.argsort(-sizes_K, kind="stable")[: int((sizes_K > 0).sum())]
    chosen = by_size[np.unique(np.linspace(0, len(by_size) - 1, clusters).round().astype(int))]
    found = []
    for cluster in chosen.tolist():
        (inside,) = np.nonzero(nearest_N == cluster)
        cosine = unit_rows(features.rows_ND[inside]) @ centres.centres_KD[cluster]
        order = inside[np.argsort(-cosine, kind="stable")].tolist()
        # A small cluster's members stand on one side only.
        far = order[count:][-count:][::-1]
        ends = float(cosine.max()), float(cosine.min())
        found.append(Members(cluster, len(inside), order[:count], far, ends))
    return found


def contact_sheet(record_set: RecordSet, found: Sequence[Members]) -> Image.Image:
    """A row per cluster: its nearest members on the left, its farthest on the right."""
    tiles = {
        number: _tile(record_set, number)
        for cluster in found
        for number in [*cluster.nearest, *cluster.farthest]
    }
    column = max(tile.width for tile in tiles.values()) + _GAP
    height = _TILE + _TEXT + 2 * _GAP
    half = max(len(cluster.nearest) for cluster in found) * column + _GAP
    right = max(max(len(cluster.farthest) for cluster in found) * column, _REMARK)
    sheet = Image.new("RGB", (half + right + 2 * _GAP, len(found) * height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT - 2)
    for row, cluster in enumerate(found):
        top = row * height + _GAP
        best, worst = cluster.cosine
        text = f"cluster {cluster.cluster}: {cluster.size} records, nearest (cosine {best:.2f})"
        pen.text((_GAP, top), text, fill=_INK, font=font)
        text = f"farthest ({worst:.2f})" if cluster.farthest else f"down to {worst:.2f}: no more"
        pen.text((half + _GAP, top), text, fill=_INK, font=font)
        for side, numbers in ((0, cluster.nearest), (half, cluster.farthest)):
            for place, number in enumerate(numbers):
                sheet.paste(tiles[number], (side + _GAP + place * column, top + _TEXT))
    return sheet


def gathering(
    record_set: RecordSet, labels_N: np.ndarray, workdir: Path, head: str, sample: int, panels: int
) -> Figure:
    """Samples and class centres of some checkpoints in one plane.

    The plane is that of the two largest principal components of the classes' mean embeddings at the
    last checkpoint, so that all panels have the same axes. Samples stand relative to their mean;
    centres, whose logits depend on direction alone, are scaled to the samples' spread.

    Raises:
      ValueError: the run has no checkpoint, no such head, or one of fewer classes; or the sample is
        of one class.
    """
    from matplotlib.figure import Figure

    from ..convert.load import load
    from ..trainers.checkpoint_reading import FOLDER, head_centres

    folders = sorted(
        (p for p in (workdir / FOLDER).glob("*") if p.name.isdigit()), key=lambda p: int(p.name)
    )
    if not folders:
        raise ValueError(f"{workdir} holds no {FOLDER}/STEP")
    folders = [folders[i] for i in np.unique(np.linspace(0, len(folders) - 1, panels).astype(int))]
    (known,) = np.nonzero(labels_N >= 0)
    taken = known[np.unique(np.linspace(0, len(known) - 1, sample).astype(int))]
    classes, colour = np.unique(labels_N[taken], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"--sample {sample}: {len(taken)} records of one class make no plane: raise it, or "
            "show labels of several classes"
        )

    views = []
    for folder in folders:
        rows = embeddings(record_set, load(folder).embed, 32, only=taken.tolist()).rows_ND
        centres = head_centres(folder, head)
        if classes[-1] >= len(centres):
            raise ValueError(
                f"--head {head} has {len(centres)} classes, the labels go up to {classes[-1]}: "
                "give the labels that it was trained with"
            )
        views.append((unit_rows(rows), unit_rows(centres[classes])))
    last = views[-1][0] - views[-1][0].mean(0)
    means = np.stack([last[colour == place].mean(0) for place in range(len(classes))])
    axes_2D = np.linalg.svd(means, full_matrices=False)[2][:2]
    radius = np.quantile(np.linalg.norm(last @ axes_2D.T, axis=1), 0.95)
    figure = Figure(figsize=(4 * len(views), 4.2), layout="constrained")
    frames = figure.subplots(1, len(views), squeeze=False, sharex=True, sharey=True)[0]
    for frame, folder, (rows, centres) in zip(frames, folders, views, strict=True):
        there = (centres - centres.mean(0)) @ axes_2D.T
        there *= radius / max(np.linalg.norm(there, axis=1).max(), 1e-9)
        here = (rows - rows.mean(0)) @ axes_2D.T
        for points, size, mark in ((here, 12, "o"), (there, 90, "X")):
            x, y = points.T
            hue = colour if len(points) == len(colour) else np.arange(len(points))
            edge = {"edgecolors": "black", "linewidths": 0.6} if mark == "X" else {"alpha": 0.6}
            frame.scatter(x, y, s=size, c=hue, cmap="tab20", marker=mark, **edge)
        cosine = float((rows * centres[colour]).sum(1).mean())
        frame.set_title(f"step {folder.name}: mean cosine {cosine:.2f}", fontsize=10)
    return figure


def main(argv: list[str]) -> int:
    """The verb `clusters`."""
    parser = argparse.ArgumentParser(
        prog="codecvit clusters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=["show"])
    parser.add_argument("records", metavar="RECORDS", help="folder of a record set")
    parser.add_argument("--labels", required=True, help="name of the clustering")
    parser.add_argument("--out", type=Path, required=True, help="the picture, .png")
    parser.add_argument("--encoder", help="where the clustering was made with --encoder: the same")
    parser.add_argument("--clusters", type=int, default=8, help="clusters on the sheet")
    parser.add_argument("--count", type=int, default=4, help="members at either end of a cluster")
    parser.add_argument("--workdir", type=Path, help="a run: draw how its samples gather")
    parser.add_argument("--head", default="main", help="of the run, with these labels")
    parser.add_argument("--sample", type=int, default=200, help="records that are embedded")
    parser.add_argument("--panels", type=int, default=4, help="checkpoints that are drawn")
    args = parser.parse_args(argv)
    try:
        for name in ("clusters", "count", "sample", "panels"):
            if getattr(args, name) < 1:
                raise ValueError(f"--{name} {getattr(args, name)} must be at least 1")
        record_set = RecordSet(args.records)
        labels = load_labels(record_set, args.labels)
        labels_N = labels.values[:, 0]
        args.out.parent.mkdir(parents=True, exist_ok=True)
        if args.workdir is not None:
            figure = gathering(
                record_set, labels_N, args.workdir, args.head, args.sample, args.panels
            )
            figure.savefig(args.out, dpi=110)
        else:
            centres = load_centres(centres_path(record_set, args.labels))
            if labels.meta.get("centres_sha256") != centres.digest:
                raise ValueError(
                    f"--labels {args.labels}: the labels were not made with the centres beside "
                    "them: run `codecvit cluster` again"
                )
            features = _features(record_set, labels.meta, args.encoder)
            found = members(features, centres, labels_N, args.clusters, args.count)
            contact_sheet(record_set, found).save(args.out)
    except ValueError as error:
        print(f"codecvit clusters: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.out}")
    return 0


def _features(record_set: RecordSet, meta: dict[str, Any], encoder: str | None) -> Features:
    """The features that the labels were made from."""
    kind, _, part = meta["features"].partition("/")
    if kind == "descriptor":
        return descriptors(record_set, part or None)
    if kind == "encoder":
        path = encoder or meta["encoder"]
        return embeddings(record_set, encoder_embed(path), 32)
    from .feature_files import read_features

    return read_features(meta["file"], record_set)


def _tile(record_set: RecordSet, number: int) -> Image.Image:
    """Up to 3 frames of a record in a row, `_TILE` pixels high."""
    picture = Image.fromarray(draw_record(record_set[number], frames=3))
    return picture.resize((max(1, round(picture.width * _TILE / picture.height)), _TILE))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
