"""k-means at scale: memory on a file larger than a block, time on fake devices or a GPU.

    python benchmarks/cluster.py --rows 1000000 --features 1024 --k 1000 --iterations 2
    python benchmarks/cluster.py --rows 100000 --features 256 --k 4000 --devices 8
    python benchmarks/cluster.py --rows 2000000 --features 1024 --k 100000    # on a GPU

Writes rows around random directions into a temporary .npy file, a block at a time, and clusters
the memory-mapped file in a process of its own, whose peak of memory (without the file's pages,
which are the system's cache) is sampled.
`--devices` splits the CPU into so many devices.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

BLOCK = 50_000


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--k", type=int, default=4000)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--mini-batch", type=int, default=0)
    parser.add_argument("--devices", type=int, default=1, help="fake ones, on a CPU")
    parser.add_argument("--folder", help="for the file; a temporary one by default")
    parser.add_argument("--file", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.file:
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = Path(folder) / "rows.npy"
        write(file, args)
        flags = f"--xla_force_host_platform_device_count={args.devices}"
        environment = {**os.environ, "XLA_FLAGS": flags}
        command = [sys.executable, __file__, *sys.argv[1:], "--file", str(file)]
        done = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        size = file.stat().st_size / 2**30
    print("| rows | file GiB | k | devices | passes | s a pass | peak memory GiB | inertia |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {args.rows:,} x {args.features} | {size:.2f} | {args.k:,} | {found['devices']} | "
        f"{found['passes']} | {found['seconds'] / found['passes']:.1f} | {found['peak']:.2f} | "
        f"{found['first']:.5g} -> {found['last']:.5g} |"
    )


def write(file, args):
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(max(2, args.k // 2), args.features)).astype(np.float32)
    shape = (args.rows, args.features)
    rows = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, args.rows, BLOCK):
        count = min(BLOCK, args.rows - start)
        noise = rng.standard_normal((count, args.features), np.float32)
        rows[start : start + count] = middles[rng.integers(0, len(middles), count)] + 0.5 * noise
        rows.flush()


def measure(args):
    import jax
    from jax.sharding import AxisType

    from codecvit.cluster.kmeans import kmeans

    memory = PeakMemory()
    memory.start()
    rows = np.load(args.file, mmap_mode="r", allow_pickle=False)
    mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))
    start = time.perf_counter()
    found = kmeans(
        rows,
        args.k,
        seed=0,
        iterations=args.iterations,
        init="random",
        batch_rows=args.mini_batch,
        mesh=mesh,
    )
    return {
        "seconds": time.perf_counter() - start,
        "passes": len(found.inertia),
        "devices": jax.device_count(),
        "peak": memory.gib,
        "first": found.inertia[0],
        "last": found.inertia[-1],
    }


class PeakMemory(threading.Thread):
    """Peak of the process' own memory; pages of the mapped file are the system's cache."""

    def __init__(self):
        super().__init__(daemon=True)
        self.gib = 0.0

    def run(self):
        while True:
            status = Path("/proc/self/status").read_text()
            kib = int(status.split("RssAnon:")[1].split()[0])
            self.gib = max(self.gib, kib / 2**20)
            time.sleep(0.02)


if __name__ == "__main__":
    main()
