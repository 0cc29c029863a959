"""The curves of one or several runs, from their metrics.jsonl.

    codecvit plot WORKDIR... [--out curves.png] [--metrics REGEX]

One panel per metric, one line per run. --out says the format by its ending: .png, .svg, .pdf, or
.html (a page with the picture and the last values as a table).
"""

from __future__ import annotations

import argparse
import html
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import PathOrUrl, exists, join, last_name
from ..metrics import JSONL, read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_METRICS = (
    r"loss(/|$)|target_cosine|hardest_negative|grad_norm/|never_hit/|lr/|top1(/|$)"
    r"|perf/(samples_per_second|mfu|input_wait|memory)"
)
FORMATS = (".png", ".svg", ".pdf", ".html")
_COLUMNS = 3

# run -> metric -> ([step], [value])
Curves = Mapping[str, Mapping[str, tuple[list[int], list[float]]]]


def read_curves(workdirs: Sequence[PathOrUrl], metrics: str = DEFAULT_METRICS) -> Curves:
    """The curves of some runs.

    Args:
      workdirs: their folders or URLs; a run is named after its folder, or by its whole path where
        two folders have one name.
      metrics: a regex; metrics in whose name it is found are taken.

    Raises:
      ValueError: a folder has no metrics, or none that the regex finds.
    """
    wanted = re.compile(metrics)
    names = [last_name(workdir) for workdir in workdirs]
    curves = {}
    for workdir, name in zip(workdirs, names, strict=True):
        if not exists(join(workdir, JSONL)):
            raise ValueError(f"{workdir} holds no {JSONL}: it is no work directory of a run")
        found: dict[str, tuple[list[int], list[float]]] = {}
        for row in read_metrics(workdir):
            for metric, value in row.items():
                if metric not in ("step", "time") and wanted.search(metric):
                    steps, values = found.setdefault(metric, ([], []))
                    steps.append(int(row["step"]))
                    values.append(value)
        curves[name if names.count(name) == 1 else str(workdir)] = found
    if not any(curves.values()):
        raise ValueError(f"--metrics {metrics!r} finds nothing in {', '.join(curves)}")
    return curves


def draw(curves: Curves) -> Figure:
    """One panel per metric, one line per run."""
    # Imported here: the figure's own class draws without a window system.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    metrics = sorted({metric for found in curves.values() for metric in found})
    rows = -(-len(metrics) // _COLUMNS)
    figure = Figure(figsize=(4.2 * _COLUMNS, 2.6 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for panel, metric in zip(panels, metrics, strict=False):
        for number, (run, found) in enumerate(curves.items()):
            steps, values = found.get(metric, ([], []))
            # A probe has a few points only, which a bare line would not show.
            mark = "o" if len(steps) < 20 else ""
            panel.plot(steps, values, f"-{mark}", markersize=3, color=f"C{number}", label=run)
        panel.set_title(metric, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.grid(alpha=0.3)
    for panel in panels[len(metrics) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, fontsize=9)
    figure.supxlabel("step", fontsize=9)
    return figure


def write_curves(curves: Curves, out: Path) -> None:
    """Draws into a file.

    Raises:
      ValueError: the file's ending is none of `FORMATS`.
    """
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"--out {out}: the ending must be one of {', '.join(FORMATS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure = draw(curves)
    if out.suffix.lower() != ".html":
        figure.savefig(out, dpi=120)
        return
    tables = {"Last values": _last_values(curves)}
    out.write_text(html_page("CodecViT runs", svg_text(figure), tables), encoding="utf-8")


def main(argv: list[str]) -> int:
    """The verb `plot`."""
    parser = argparse.ArgumentParser(
        prog="codecvit plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    parser.add_argument("--metrics", default=DEFAULT_METRICS, metavar="REGEX", help="which metrics")
    args = parser.parse_args(argv)
    try:
        curves = read_curves(args.workdirs, args.metrics)
        write_curves(curves, args.out)
    except (ValueError, OSError, re.error) as error:
        print(f"codecvit plot: {error}", file=sys.stderr)
        return 1
    count = len({metric for found in curves.values() for metric in found})
    print(f"{args.out}: {count} metrics of {len(curves)} run(s)")
    return 0


def svg_text(figure: Figure) -> str:
    """A figure as an SVG element."""
    picture = io.StringIO()
    figure.savefig(picture, format="svg")
    svg = picture.getvalue()
    return svg[svg.index("<svg") :]


def html_page(
    title: str, svg: str, tables: Mapping[str, Sequence[Sequence[str]]], note: str = ""
) -> str:
    """A page that needs no other file: a picture, tables by heading, a note, all of it text."""
    style = "body{font-family:sans-serif}svg{max-width:100%;height:auto}"
    style += "td{padding:2px 12px;white-space:nowrap}tr:first-child{font-weight:bold}"
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f"<style>{style}</style>\n{svg}",
    ]
    for heading, rows in tables.items():
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
        body = "\n".join(f"<tr>{row}</tr>" for row in cells)
        parts.append(f"<h2>{html.escape(heading)}</h2>\n<table>\n{body}\n</table>")
    return "\n".join([*parts, f"<p>{html.escape(note)}</p></html>\n"])


def _last_values(curves: Curves) -> list[list[str]]:
    rows = [["metric", *curves]]
    for metric in sorted({metric for found in curves.values() for metric in found}):
        lasts = [found[metric][1][-1] if metric in found else None for found in curves.values()]
        rows.append([metric, *("" if last is None else f"{last:.5g}" for last in lasts)])
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
