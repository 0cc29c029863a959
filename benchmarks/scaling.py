"""Writes the tables of docs/scaling.md: memory, communication and time on 64 to 4,096 chips.

python benchmarks/scaling.py            # write them into the page, between its markers
python benchmarks/scaling.py --check    # exit 1 if the page has other tables

Nothing is measured: scaling_formulas.py computes everything from sizes and the public figures of
chips.py. tests/test_scaling.py holds the formulas against the compiled step.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import scaling_formulas as formulas
from chips import CHIPS, Chip
from scaling_formulas import Run

from codecvit.models.config import ViTConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
UTILISATION = 0.4
PIECE_TOKENS = 16_384  # of one chip at one time; more come in pieces

MODELS = {
    "L/14": ViTConfig.from_variant("L/14", dtype="bfloat16"),
    "H/14": ViTConfig.from_variant("H/14", dtype="bfloat16"),
    "2B/14": ViTConfig(
        width=2048, depth=40, num_heads=32, mlp_dim=8192, patch=14, dtype="bfloat16"
    ),
}
CLASSES = (2**21, 20 * 2**20)  # 2 and 20 million; multiples that every mesh and chunks divide
MESHES = (64, 256, 1024, 4096)
FSDP = {"L/14": 1, "H/14": 8, "2B/14": 8}
BATCH = 32_768


def make_run(model: str, chips: int, classes: int = CLASSES[0], **changes: object) -> Run:
    """One step of 32,768 clips of 2,048 tokens, in pieces that give a chip 16,384 tokens at a time.

    Args:
      model: a key of `MODELS`.
      chips: N, all on `data` unless `fsdp` is given.
      classes: C.
      **changes: fields of `Run`.
    """
    fsdp = changes.get("fsdp", 1)
    values = {"batch": BATCH, "tokens": 2048, "model": MODELS[model], **changes}
    pieces = max(1, values["batch"] * values["tokens"] // (chips * PIECE_TOKENS))
    return Run(**{"data": chips // fsdp, "classes": classes, "pieces": pieces, **values})


def chips_table() -> Iterable[str]:
    yield (
        "| chip | bf16 TFLOP/s | memory GB | its GB/s | fast links GB/s | among | network GB/s | "
        "source |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for chip in CHIPS.values():
        sources = ", ".join(f"[{i}]({url})" for i, url in enumerate(chip.sources, 1))
        network = f"{chip.network_gbs:g}" if chip.network_gbs else "-"
        yield (
            f"| {chip.name} | {chip.tflops:g} | {chip.hbm_gb:g} | {chip.hbm_gbs:,.0f} | "
            f"{chip.link_gbs:g} | {chip.group:,} | {network} | {sources} |"
        )


def models_table() -> Iterable[str]:
    yield (
        "| model | width, layers, heads, MLP | parameters | copied | fsdp=8 | "
        "GFLOP a token at 256 | at 2,048 |"
    )
    yield "|---|---|---|---|---|---|---|"
    for name, model in MODELS.items():
        whole = formulas.memory(make_run(name, 64, pieces=1))["encoder"]
        split = formulas.memory(make_run(name, 64, pieces=1, fsdp=8))["encoder"]
        work = [formulas.train_flops_per_token(model, tokens) / 1e9 for tokens in (256, 2048)]
        yield (
            f"| {name} | {model.width:,}, {model.depth}, {model.num_heads}, {model.mlp_dim:,} | "
            f"{formulas.parameters(model) / 1e6:,.0f} M | {gb(whole)} | {gb(split)} | "
            f"{work[0]:.2f} | {work[1]:.2f} |"
        )


def memory_table() -> Iterable[str]:
    yield (
        "| model | classes | chips | encoder | centres | head: 8 chunks | sampled 0.1 | "
        "activations: none | full | sum: none | full |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for name in MODELS:
        for classes in CLASSES:
            for chips in MESHES:
                run = make_run(name, chips, classes, chunks=8, fsdp=FSDP[name])
                whole = formulas.memory(run)
                sampled = formulas.memory(dataclasses.replace(run, sample_rate=0.1, chunks=1))
                again = dataclasses.replace(run.model, remat="full")
                recomputed = formulas.memory(dataclasses.replace(run, model=again))
                cells = [
                    gb(whole["encoder"]),
                    gb(whole["centres"]),
                    gb(head_work(whole)),
                    gb(head_work(sampled))
                    if chips <= formulas.largest_sampled_mesh(classes)
                    else "refused",
                    gb(whole["activations"]),
                    gb(recomputed["activations"]),
                    gb(sum(whole.values())),
                    gb(sum(recomputed.values())),
                ]
                yield f"| {name} | {millions(classes)} | {chips:,} | {' | '.join(cells)} |"


def images_table() -> Iterable[str]:
    yield (
        "| samples of a piece | chips | embeddings | targets' rows | logits of 2 M | of 20 M | "
        "v5e: ms to move embeddings | H200 |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for chips in MESHES:
        batch = 64 * chips
        runs = [
            make_run("L/14", chips, classes, batch=batch, tokens=256, pieces=1)
            for classes in CLASSES
        ]
        first, second = map(formulas.memory, runs)
        rows = 2 * formulas.FLOAT * runs[0].model.width * batch * runs[0].labels
        times = [
            sum(
                formulas.seconds(moved, CHIPS[chip])
                for moved in formulas.communication(runs[0])
                if moved.what == "embeddings"
            )
            for chip in ("TPU v5e", "H200")
        ]
        yield (
            f"| {batch:,} | {chips:,} | {gb(first['embeddings'])} | {gb(rows)} | "
            f"{gb(first['logits'])} | {gb(second['logits'])} | {ms(times[0])} | {ms(times[1])} |"
        )


def time_table() -> Iterable[str]:
    yield (
        "| model | chip | chips | pieces | compute | update | gradient | parameters | head | "
        "step | communication |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for name in MODELS:
        for chip in ("TPU v5e", "TPU v5p", "TPU v6e", "H200"):
            for chips in (64, 4096):
                run = make_run(name, chips, CLASSES[1], chunks=8, fsdp=FSDP[name])
                parts = formulas.step_seconds(run, CHIPS[chip], UTILISATION)
                head = parts["embeddings"] + parts["labels"] + parts["softmax"]
                total = sum(parts.values())
                moved = total - parts["compute"] - parts["update"]
                yield (
                    f"| {name} | {chip} | {chips:,} | {run.pieces} | {ms(parts['compute'])} | "
                    f"{ms(parts['update'])} | {ms(parts['gradient'])} | "
                    f"{ms(parts.get('parameters', 0.0))} | {ms(head)} | {total:.2f} s | "
                    f"{moved / total:.0%} |"
                )


def fewest_tokens_table() -> Iterable[str]:
    columns = [("TPU v4", 4096), ("TPU v5e", 256), ("TPU v5e", 4096), ("TPU v5p", 4096)]
    columns += [("TPU v6e", 256), ("TPU v6e", 4096), ("H200", 8), ("H200", 4096)]
    yield f"| model | {' | '.join(f'{chip}, {chips:,}' for chip, chips in columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for name in MODELS:
        found = (f"{fewest_tokens(name, CHIPS[chip], chips):,}" for chip, chips in columns)
        yield f"| {name} | {' | '.join(found)} |"


def fewest_tokens(model: str, chip: Chip, chips: int) -> int:
    """Tokens of a piece on one chip whose compute takes ten times the gradient's all-reduce."""
    run = make_run(model, chips, pieces=1)
    (gradient,) = [m for m in formulas.communication(run) if m.what == "gradient"]
    per_token = formulas.train_flops_per_token(run.model, run.tokens)
    speed = chip.tflops * 1e12 * UTILISATION / per_token
    return round(10 * formulas.seconds(gradient, chip) * speed / 100) * 100


def head_work(parts: dict[str, float]) -> float:
    """What comes and goes in the head."""
    return parts["embeddings"] + parts["logits"] + parts["rows"]


def millions(classes: int) -> str:
    return f"{classes / 2**20:.0f} M"


def gb(size: float) -> str:
    return f"{size / 1e9:.1f}" if size >= 1e9 else f"{size / 1e9:.2f}"


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.01 else f"{seconds * 1e3:.1f}"


TABLES: dict[str, Callable[[], Iterable[str]]] = {
    "chips": chips_table,
    "models": models_table,
    "memory": memory_table,
    "images": images_table,
    "time": time_table,
    "fewest tokens": fewest_tokens_table,
}


def with_tables(page: str) -> str:
    """The page with each table between its markers made anew.

    Raises:
      ValueError: a marker is missing.
    """
    for name, rows in TABLES.items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", flags=re.S)
        if not pattern.search(page):
            raise ValueError(f"{PAGE.name} has no markers '<!-- table: {name} -->', '<!-- end -->'")
        table = "".join(f"{row}\n" for row in rows())
        page = pattern.sub(lambda match, table=table: match[1] + table + match[2], page)
    return page


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    made = with_tables(page)
    if args.check:
        return int(page != made)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
