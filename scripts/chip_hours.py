"""Writes docs/chip_hours.md: what each shipped pretraining config costs, from its analytic FLOPs.

python scripts/chip_hours.py            # write it
python scripts/chip_hours.py --check    # exit 1 if it is not what would be written
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from chips import CHIPS  # noqa: E402

from codecvit.configs.openvision import MODELS, STAGES  # noqa: E402
from codecvit.trainers import contrastive_sources, pretrain_sources  # noqa: E402
from codecvit.trainers.contrastive_config import ContrastiveConfig  # noqa: E402
from codecvit.trainers.pretrain_config import PretrainConfig  # noqa: E402

PAGE = ROOT / "docs" / "chip_hours.md"
UTILISATION = 0.4
SHOWN = ("TPU v4", "TPU v5e", "TPU v5p", "TPU v6e", "H200")

RUNS = {
    "pretrain_video": ["", "variant=H/14"],
    "stage1_images": [
        f"variant={size}/14,size={side}" for side in (224, 448) for size in ("B", "L", "H")
    ],
    "stage2_video": ["variant=L/14", "variant=H/14"],
    "openvision": [
        f"img={name},stage={stage}"
        for name, model in MODELS.items()
        for stage, side in zip(STAGES, model.res, strict=True)
        if side
    ],
}
"""Config files and the arguments of each row; "" are its defaults."""

HEAD = f"""# Chip-hours

Made by `python scripts/chip_hours.py`; do not edit. **These are estimates, not measurements**: the
analytic FLOPs of all steps ([`flops.py`](../src/trainers/flops.py): forward and backward of the
blocks, the head, of image-text runs the text tower and the decoder; nothing that is computed
again), divided by {UTILISATION:.0%} of the chip's dense bfloat16 peak. Whether a run reaches
that depends on the chip, the batch and the input; none of these has been run at its size with this
code. Start-up, checkpoints, probes, lost work after a preemption and packing the data come on top.
Divide by the number of chips for the hours of a run; what a number of chips changes, the peaks and
their sources are in [scaling.md](scaling.md#chips). An H100 has the peak of the H200.
"""
TAIL = """
A row of yours: `codecvit train --config=... --dry-run --devices=N` prints the EFLOP of a run;
chip-hours = EFLOP * 10^6 / (peak in TFLOP/s * utilisation * 3,600).
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args()
    text = HEAD + "".join(map(section, RUNS)) + TAIL
    if args.check:
        return int(PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


def section(name: str) -> str:
    """The table of one config file."""
    lines = [
        f"\n## [`{name}.py`](../src/configs/{name}.py)\n",
        f"| arguments | steps | samples | EFLOP | hours: {' | '.join(SHOWN)} |",
        "|---" * (4 + len(SHOWN)) + "|",
    ]
    for arguments in RUNS[name]:
        found = work(name, arguments)
        hours = " | ".join(rounded(chip_hours(found["flops"], chip)) for chip in SHOWN)
        lines.append(
            f"| {f'`{arguments}`' if arguments else 'defaults'} | {found['steps']:,} | "
            f"{rounded(found['samples'] / 1e6)} M | {rounded(found['flops'] / 1e18)} | {hours} |"
        )
    return "\n".join(lines) + "\n"


def work(name: str, arguments: str) -> dict[str, Any]:
    """Steps, samples and analytic FLOPs of a whole run.

    Args:
      name: a config file of src/configs.
      arguments: what stands after the colon of --config.
    """
    made = importlib.import_module(f"codecvit.configs.{name}").get_config(arguments).to_dict()
    if name == "openvision":
        config = ContrastiveConfig.from_dict(made)
        step = contrastive_sources.step_work(config)
        segments = [(config.total_steps, step)]
    else:
        config = PretrainConfig.from_dict(made)
        segments = _segments(config)
    total = {"steps": config.total_steps}
    for key in ("samples", "flops"):
        total[key] = sum(steps * step[key] for steps, step in segments)
    return total


def _segments(config: PretrainConfig) -> list[tuple[int, dict[str, Any]]]:
    """(number of steps, work of one) between the steps at which a source changes its bucket."""
    starts = {1, config.total_steps + 1}
    for source in config.sources.values():
        starts |= {phase.from_step for phase in source.phases.values()}
    starts = sorted(start for start in starts if start <= config.total_steps + 1)
    return [
        (end - start, pretrain_sources.step_work(config, start))
        for start, end in zip(starts, starts[1:], strict=False)
    ]


def chip_hours(flops: float, chip: str) -> float:
    """Hours of one chip at `UTILISATION` of its peak."""
    return flops / (CHIPS[chip].tflops * 1e12 * UTILISATION) / 3600


def rounded(number: float) -> str:
    """Three digits, with thousands separated; no more is known."""
    if number < 100:
        return f"{number:.3g}"
    return f"{float(f'{number:.3g}'):,.0f}"


if __name__ == "__main__":
    sys.exit(main())
