"""The demo's report: one HTML page and one JSON file of what came out."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from codecvit.metrics import read_metrics

SCORES = (("knn_top1", "k-NN"), ("linear_top1", "linear probe"))
Row = dict[str, object]


def results(out: Path, labels: Sequence[str], modes: Sequence[str]) -> list[Row]:
    """One row per label column, probe and kind of input.

    Args:
      out: the demo's folder.
      labels: label columns that were probed.
      modes: selections that an encoder was trained on.

    Returns:
      Rows with `labels`, `probe`, `input`, and accuracies in 0..1: `chance`, `untrained`,
      `trained`; the descriptor has no untrained form.
    """
    rows: list[Row] = []
    descriptor = json.loads((out / "descriptor.json").read_text())
    for column in labels:
        for key, probe in SCORES:
            for mode in modes:
                name = f"probe/{column}/"
                probed = [r for r in read_metrics(out / "runs" / mode) if name + key in r]
                first, last = probed[0], probed[-1]
                rows.append(
                    {
                        "labels": column,
                        "probe": probe,
                        "input": mode,
                        "chance": first[name + "chance"],
                        "untrained": first[name + key],
                        "trained": last[name + key],
                    }
                )
            chance, score = descriptor[column]["chance"], descriptor[column][key]
            rows.append(
                {
                    "labels": column,
                    "probe": probe,
                    "input": "descriptor",
                    "chance": chance,
                    "trained": score,
                }
            )
    return rows


def as_text(rows: Sequence[Row]) -> str:
    """The rows as a plain table."""
    lines = [
        f"{'labels':8} {'probe':13} {'input':11} {'chance':>7} {'untrained':>10} {'trained':>8}"
    ]
    for row in rows:
        untrained = f"{row['untrained']:.1%}" if "untrained" in row else "-"
        lines.append(
            f"{row['labels']:8} {row['probe']:13} {row['input']:11} {row['chance']:>7.1%} "
            f"{untrained:>10} {row['trained']:>8.1%}"
        )
    return "\n".join(lines)


def verdict(rows: Sequence[Row], test_records: int) -> list[str]:
    """What came out of codec against frames, whichever it is."""
    scores = {(row["labels"], row["probe"], row["input"]): float(row["trained"]) for row in rows}
    sentences = []
    for column, probe, mode in scores:
        if mode != "codec":
            continue
        codec, frames = scores[column, probe, "codec"], scores[column, probe, "frames"]
        noise = 2 * ((codec * (1 - codec) + frames * (1 - frames)) / test_records) ** 0.5
        if abs(codec - frames) <= noise:
            finding = "no difference beyond the noise of one run"
        else:
            finding = ("codec selection" if codec > frames else "uniform frames") + " ahead"
        sentences.append(
            f"{column}, {probe}: codec {codec:.1%}, frames {frames:.1%} (two standard errors of "
            f"the difference: {noise:.1%}): {finding}."
        )
    return sentences


def write(out: Path, labels: Sequence[str], modes: Sequence[str], seconds: float) -> Path:
    """Writes report.json and report.html.

    Args:
      out: the demo's folder.
      labels, modes: as for `results`.
      seconds: what the demo took.

    Returns:
      The path of the page.
    """
    rows = results(out, labels, modes)
    config = json.loads((out / "runs" / modes[0] / "config.json").read_text())
    test = json.loads((out / "records" / "test" / modes[0] / "manifest.json").read_text())
    findings = verdict(rows, test["records"])
    (out / "report.json").write_text(
        json.dumps({"rows": rows, "findings": findings}, indent=2) + "\n"
    )

    pictures = sorted((out / "pictures").glob("*.png"), reverse=True)
    source = config["sources"]["video"]
    page = out / "report.html"
    page.write_text(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>CodecViT demo</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 1rem; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .2rem .8rem; border-bottom: 1px solid #ccc; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
img {{ max-width: 100%; image-rendering: pixelated; }} svg {{ border: 1px solid #ccc; }}
</style></head><body>
<h1>CodecViT demo</h1>
<p>An encoder of {config["model"]["depth"]} blocks of width {config["model"]["width"]}, pretrained
for {config["total_steps"]} steps of {source["batch_size"]} clips and {source["budget"]} patches by
cluster discrimination, once on the patches that the codec selection keeps and once on uniform
frames with the same number of patches. The labels are clusters of the training-free descriptor. The
probes see the frozen embedding of {test["records"]} test clips. {seconds / 60:.1f} minutes, this
run alone.</p>
<h2>Probes</h2>
{_table(rows)}
<p>The descriptor is the baseline that needs no training: statistics of motion, colour and shape.
One seed; docs/benchmarks.md has three.</p>
<h2>Codec selection against uniform frames</h2>
<ul>{"".join(f"<li>{html.escape(text)}</li>" for text in findings)}</ul>
<h2>Training loss</h2>
{_curves({mode: read_metrics(out / "runs" / mode) for mode in modes})}
<h2>Selections</h2>
{"".join(_picture(path, out) for path in pictures)}
</body></html>
"""
    )
    return page


def _table(rows: Sequence[Row]) -> str:
    head = "<tr><th>labels<th>probe<th>input<th>chance<th>untrained<th>trained</tr>"
    body = ""
    for row in rows:
        untrained = f"{row['untrained']:.1%}" if "untrained" in row else "–"
        body += f"<tr><td>{html.escape(str(row['labels']))}<td>{row['probe']}<td>{row['input']}"
        for cell in (f"{row['chance']:.1%}", untrained, f"{row['trained']:.1%}"):
            body += f'<td class="number">{cell}'
        body += "</tr>"
    return f"<table>{head}{body}</table>"


def _curves(runs: dict[str, list[dict[str, float]]], width: int = 640, height: int = 240) -> str:
    """Loss by step as an SVG picture, one line a run."""
    points = {
        mode: [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
        for mode, rows in runs.items()
    }
    last = max(step for line in points.values() for step, _ in line)
    top = max(loss for line in points.values() for _, loss in line)
    drawing = ""
    for i, (mode, line) in enumerate(points.items()):
        colour = ("#c33", "#36c")[i % 2]
        path = " ".join(f"{width * x / last:.1f},{height * (1 - y / top):.1f}" for x, y in line)
        drawing += f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        drawing += f'<text x="{width - 90}" y="{20 + 18 * i}" fill="{colour}">{mode}</text>'
    drawing += f'<text x="4" y="14">{top:.1f}</text><text x="4" y="{height - 4}">0</text>'
    drawing += f'<text x="{width - 90}" y="{height - 4}">step {last}</text>'
    return f'<svg viewBox="0 0 {width} {height}" width="{width}">{drawing}</svg>'


def _picture(path: Path, out: Path) -> str:
    name = html.escape(path.relative_to(out).as_posix())
    return f'<figure><img src="{name}" alt="{name}"><figcaption>{name}</figcaption></figure>'
