"""Time of one training step on this machine, by recomputation policy and allocator setting.

    python benchmarks/step_variants.py [--variant Ti/14] [--depth 4] [--batch 16] [--tokens 128]

The step is the trainer's own (forward, backward, AdamW) on random patches. Each variant runs in a
process of its own, twice in turn; the table has the medians of the step times, and of all of
them the fastest. `huge pages` means GLIBC_TUNABLES=glibc.malloc.hugetlb=1, as scripts/demo.sh sets.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

VARIANTS = {
    "remat none, huge pages": ({"remat": "none"}, True),
    "remat none": ({"remat": "none"}, False),
    "remat dots, huge pages": ({"remat": "dots"}, True),
    "remat full, huge pages": ({"remat": "full"}, True),
    "unrolled, huge pages": ({"scan": False}, True),
}
ROUNDS, STEPS = 2, 10


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="Ti/14")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args, VARIANTS[args.one][0])))
        return
    times = {name: [] for name in VARIANTS}
    for _ in range(ROUNDS):
        for name, (_, huge) in VARIANTS.items():
            env = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1" if huge else ""}
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
            done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
            times[name] += json.loads(done.stdout)
    print("| variant | median ms | fastest ms |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {1e3 * np.median(values):.0f} | {1e3 * min(values):.0f} |")


def measure(args, fields):
    """Seconds of each of a few steps, after two that compile and warm up."""
    import jax

    from codecvit.trainers import mesh as meshes
    from codecvit.trainers.pretrain_config import PretrainConfig
    from codecvit.trainers.pretrain_step import init_state, make_train_step

    source = {"records": "none", "batch_size": args.batch, "budget": args.tokens}
    config = PretrainConfig.from_dict(
        {
            "model": {"variant": args.variant, "depth": args.depth, "dtype": "auto", **fields},
            "sources": {"video": source},
            "heads": {"main": {"num_classes": 64}},
            "total_steps": 100,
        }
    )
    rng = np.random.default_rng(0)
    shape = (args.batch, args.tokens)
    batch = {
        "patches": rng.integers(0, 256, (*shape, config.model.patch**2 * 3), np.uint8),
        "positions": np.sort(rng.integers(0, 8, (*shape, 3)), axis=1).astype(np.int32),
        "length": np.full(args.batch, args.tokens, np.int32),
        "labels": rng.integers(0, 64, (args.batch, 1)).astype(np.int32),
        "weight": np.ones(args.batch, np.float32),
    }
    seconds = []
    mesh = meshes.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        state = jax.jit(lambda key: init_state(config, key))(jax.random.key(0))
        step = jax.jit(make_train_step(config), donate_argnums=0)
        batches = {"video": meshes.put_batch(batch, mesh)}
        for _ in range(STEPS + 2):
            start = time.perf_counter()
            state, metrics = step(state, batches)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - start)
    return seconds[2:]


if __name__ == "__main__":
    main()
