"""What a compiled program moves between devices, read from its text."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4, "bf16": 2}


def partitioned(lowered: jax.stages.Lowered, folder: Path) -> str:
    """The program of one device as the partitioner leaves it.

    Later passes of the CPU's compiler widen what is bfloat16; accelerators don't.
    """
    options = {"xla_dump_to": str(folder), "xla_dump_hlo_pass_re": "spmd.*"}
    # The cache of compiled programs would answer without a dump; it looks at this flag only once.
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        lowered.compile(compiler_options=options)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
    (path,) = folder.glob("*after_spmd-partitioning*.txt")
    return path.read_text()


def moved(text: str) -> list[tuple[str, str, tuple[int, ...], int]]:
    """(kind, dtype, shape, times a step) of every collective; the shape is that of its result."""
    bodies = _computations(text)
    times = _repeats(bodies)
    found = []
    for name, lines in bodies.items():
        for line in lines:
            for kind in KINDS:
                match = re.search(rf"= (.*?) {kind}(?:-start)?\(", line)
                if match:
                    for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
                        shape = tuple(int(size) for size in sizes.split(",") if size)
                        found.append((kind, dtype, shape, times[name]))
    return found


def moved_bytes(text: str, devices: int) -> Counter[str]:
    """Bytes per kind in one step: of the result, of a reduce-scatter of its operand."""
    total = Counter()
    for kind, dtype, shape, times in moved(text):
        scattered = devices if kind == "reduce-scatter" else 1
        total[kind] += math.prod(shape) * _BYTES[dtype] * times * scattered
    return total


def _computations(text: str) -> dict[str, list[str]]:
    bodies, name = {}, None
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith("HloModule"):
            name = head[1]
            bodies[name] = []
        elif name is not None:
            bodies[name].append(line)
    return bodies


def _repeats(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in a step: a loop counts from 0 to a constant."""
    times = dict.fromkeys(bodies, 1)
    callers = {}
    for name, lines in bodies.items():
        for line in lines:
            loop = re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line)
            if loop:
                (bound,) = re.findall(r"constant\((\d+)\)", "\n".join(bodies[loop[1]]))
                callers[loop[2]] = (name, int(bound))
            for called in re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)", line):
                callers.setdefault(called, (name, 1))
    for name in bodies:
        at = name
        while at in callers:
            at, count = callers[at]
            times[name] *= count
    return times
