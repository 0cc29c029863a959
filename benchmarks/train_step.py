"""The training step beside the same step in PyTorch, in one run.

    python benchmarks/train_step.py            # a GPU: ViT-L/14, bfloat16, 65,536 tokens a step
    python benchmarks/train_step.py --tiny     # a CPU: ViT-Ti/14, float32, 8 x 256 tokens

First every attention that this device has is compared with a dense float32 reference, and the
losses of both steps from equal parameters with each other; a difference ends the run. Then each
side runs in a process of its own per case, in turn (jax, torch, jax, torch); the table has medians
of the step times and the larger of the peaks of memory. A side that fails (PyTorch's compiler
without a C compiler, too little memory) is named and left out, and the script ends with status 1.

Both steps: forward, backward, clip, AdamW on float32 parameters, CosFace over 4,096 classes with
one label. PyTorch runs eager and, on a GPU, compiled, with scaled_dot_product_attention and fused
AdamW. TFLOP/s by the count of trainers/flops.py.

Imports models, losses and the trainers' step only: no data reader, no av, no ml_collections.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time

import numpy as np

# name -> (variant, batch, tokens)
CASES = {
    "gpu": {"L/14, 2,048 tokens": ("L/14", 32, 2048), "L/14, 256 tokens": ("L/14", 256, 256)},
    "tiny": {"Ti/14, 256 tokens": ("Ti/14", 8, 256)},
}
SIDES = {"jax": "JAX, ours", "eager": "PyTorch eager", "compiled": "PyTorch compiled"}
CLASSES = 4096
ROUNDS = 2


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="the CPU's case")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a process")
    parser.add_argument("--tokens", type=int, default=65_536, help="of a step, without --tiny")
    parser.add_argument("--remat", default="none", help="recomputation policy of ours")
    parser.add_argument("--minutes", type=float, help="start no process after so many minutes")
    parser.add_argument("--worker", choices=["check", *SIDES], help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        run = {"check": check, "jax": run_jax, "eager": run_torch, "compiled": run_torch}
        run[args.worker](args)
        return
    start = time.perf_counter()
    sides = ["jax"]
    if importlib.util.find_spec("torch") is None:
        print("torch is not installed: no comparison")
    else:
        sides += ["eager"] if args.tiny else ["eager", "compiled"]
    if worker("check") is None:
        sys.exit("the check failed: nothing is timed")
    rows, failed, left_out = [], set(), 0
    for one in [(case, side) for _ in range(ROUNDS) for case in cases(args) for side in sides]:
        if one in failed:
            continue
        if args.minutes and time.perf_counter() - start > 60 * args.minutes:
            left_out += 1
            continue
        found = worker(one[1], "--case", one[0])
        if found is None:
            failed.add(one)
            print(f"{one[0]}, {SIDES[one[1]]}: failed, left out", flush=True)
        else:
            rows += found
    if left_out:
        print(f"{args.minutes:g} minutes are over: {left_out} processes were not started")
    print(table(args, rows))
    sys.exit(bool(failed))


def worker(name, *arguments):
    """The JSON lines of one process, or None if it failed; its other lines are printed."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name, *arguments]
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    found = []
    for line in done.stdout.splitlines():
        print(line, flush=True)  # timings as well, so that a run that is cut off has them
        if line.startswith("{"):
            found.append(json.loads(line))
    return None if done.returncode else found


def cases(args):
    chosen = CASES["tiny" if args.tiny else "gpu"]
    if args.tiny:
        return chosen
    return {name: (v, max(1, args.tokens // L), L) for name, (v, _, L) in chosen.items()}


def table(args, rows):
    peak = max((row["peak"] for row in rows), default=0.0)
    lines = [
        "| case | side | ms | TFLOP/s | share of peak | peak memory GiB | of the faster PyTorch |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases(args):
        seconds, memory, flops = {}, {}, {}
        for row in (row for row in rows if row["case"] == case):
            seconds.setdefault(row["side"], []).extend(row["seconds"])
            memory[row["side"]] = max(row["memory"], memory.get(row["side"], 0))
            flops[case] = row["flops"]
        median = {side: float(np.median(values)) for side, values in seconds.items()}
        best = min((ms for side, ms in median.items() if side.startswith("PyTorch")), default=None)
        for side, value in median.items():
            rate = flops[case] / value / 1e12
            share = f"{rate / peak:.1%}" if peak else ""
            ratio = f"{best / value:.2f} x its speed" if best else ""
            gib = f"{memory[side]:.1f}" if memory[side] else ""
            lines.append(
                f"| {case} | {side} | {1e3 * value:.1f} | {rate:.3g} | {share} | {gib} | {ratio} |"
            )
    return "\n".join(lines)


def random_batch(batch, tokens, patch):
    rng = np.random.default_rng(0)
    return {
        "patches": rng.integers(0, 256, (batch, tokens, patch**2 * 3), np.uint8),
        "positions": np.sort(rng.integers(0, 16, (batch, tokens, 3)), axis=1).astype(np.int32),
        "length": np.full(batch, tokens, np.int32),
        "labels": rng.integers(0, CLASSES, (batch, 1)).astype(np.int32),
        "weight": np.ones(batch, np.float32),
    }


def make_config(variant, batch, tokens, dtype, remat="none", depth=None):
    from codecvit.trainers.pretrain_config import PretrainConfig

    model = {"variant": variant, "dtype": dtype, "remat": remat, "depth": depth}
    return PretrainConfig.from_dict(
        {
            "model": model,
            "sources": {"main": {"records": "none", "batch_size": batch, "budget": tokens}},
            "heads": {"main": {"num_classes": CLASSES}},
            "optim": {"lr": 1e-4, "schedule": "constant"},
            "total_steps": 1000,
        }
    )


def check(args):
    """Every attention of this device against a dense reference; the two steps' losses."""
    import jax
    import jax.numpy as jnp

    from codecvit.models.attention import IMPLEMENTATIONS, attention
    from codecvit.trainers.pretrain_step import init_state, make_train_step

    platform = jax.default_backend()
    available = {"cpu": ["xla"], "gpu": ["xla", "cudnn"], "tpu": ["xla", "splash"]}[platform]
    print(f"attentions: {', '.join(available)} of {', '.join(IMPLEMENTATIONS)} on {platform}")
    B, L, H, K = 2, 256, 4, 64
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, g = (jax.random.normal(key, (B, L, H, K)) for key in keys)
    lengths = jnp.array([L, 77])
    valid = (jnp.arange(L) < lengths[:, None])[:, :, None, None]

    def dense(q, k, v):
        with jax.default_matmul_precision("highest"):
            logits = jnp.einsum("blhk,bshk->bhls", q, k) * K**-0.5
            logits = jnp.where(valid[:, None, None, :, 0, 0], logits, -1e30)
            return jnp.einsum("bhls,bshk->blhk", jax.nn.softmax(logits), v)

    def results(run, dtype):
        out, vjp = jax.vjp(run, *(x.astype(dtype) for x in (q, k, v)))
        gradients = vjp((g * valid).astype(out.dtype))
        return [np.asarray(x * valid, np.float32) for x in (out, *gradients)]

    want = results(dense, jnp.float32)
    for impl in available:
        dtype, limit = (jnp.float32, 1e-4) if impl == "xla" else (jnp.bfloat16, 0.04)
        if platform == "gpu" and impl == "xla":
            limit = 2e-2  # TF32 products
        got = results(lambda *a, i=impl: attention(*a, lengths_B=lengths, impl=i), dtype)
        worst = max(float(np.abs(a - b).max()) for a, b in zip(got, want, strict=True))
        print(f"attention {impl}: largest difference {worst:.1e} (limit {limit:g})")
        if not worst < limit:
            sys.exit(f"attention {impl} differs from the dense reference")
    if importlib.util.find_spec("torch") is None:
        return

    import torch
    import torch_step

    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        config = make_config("Ti/14", 4, 64, "float32", depth=2)
        state = init_state(config, jax.random.key(0))
        batch = random_batch(4, 64, 14)
        _, metrics = jax.jit(make_train_step(config))(state, {"main": batch})
        ours = float(metrics["loss"])
    model = torch_step.TorchViT(192, 2, 3, 768, 14, CLASSES)
    torch_step.load_jax(model, jax.device_get(state["params"]))
    tensors = [torch.from_numpy(batch[key]) for key in ("patches", "positions", "labels")]
    loss = model.loss(tensors[0], tensors[1], tensors[2][:, 0].long())
    loss.backward()
    norm = torch.stack([p.grad.norm() for n, p in model.named_parameters() if n != "centres"])
    pairs = {
        "loss": (ours, loss.item()),
        "gradient norm": (float(metrics["grad_norm/encoder"]), norm.norm().item()),
    }
    for name, (a, b) in pairs.items():
        print(f"{name} of equal parameters: ours {a:.6f}, PyTorch {b:.6f}")
        if abs(a - b) > 1e-4 * abs(b):
            sys.exit(f"the two steps do not compute the same {name}")


def run_jax(args):
    import jax

    from codecvit.trainers import mesh as meshes
    from codecvit.trainers.flops import peak_tflops
    from codecvit.trainers.pretrain_step import init_state, make_train_step

    variant, batch, tokens = cases(args)[args.case]
    dtype = "float32" if args.tiny else "bfloat16"
    config = make_config(variant, batch, tokens, dtype, args.remat)
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = jax.jit(lambda key: init_state(config, key))(jax.random.key(0))
        step = jax.jit(make_train_step(config), donate_argnums=0)
        rows = {"main": meshes.put_batch(random_batch(batch, tokens, 14), mesh)}
        seconds = []
        for _ in range(args.steps + 3):  # three that compile and warm up
            start = time.perf_counter()
            state, metrics = step(state, rows)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - start)
    stats = jax.devices()[0].memory_stats() or {}
    memory, peak = stats.get("peak_bytes_in_use", 0), peak_tflops(jax.devices()[0])
    report(args, seconds[3:], memory, config.model, peak)


def run_torch(args):
    import torch
    import torch_step

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    variant, batch, tokens = cases(args)[args.case]
    c = make_config(variant, batch, tokens, "float32").model
    rows = random_batch(batch, tokens, 14)
    inputs = [torch.from_numpy(rows[k]).to(device) for k in ("patches", "positions", "labels")]
    inputs[2] = inputs[2][:, 0].long()
    torch.manual_seed(0)
    sizes = (c.width, c.depth, c.num_heads, c.mlp_dim, c.patch, CLASSES)
    model = torch_step.TorchViT(*sizes).to(device)
    if args.worker == "compiled":
        model.loss = torch.compile(model.loss)
    step = torch_step.make_step(model, torch_step.make_optimizer(model), autocast=not args.tiny)
    seconds = []
    for _ in range(args.steps + 3):
        start = time.perf_counter()
        step(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    report(args, seconds[3:], memory, c, 0.0)


def report(args, seconds, memory, model, peak):
    """One process's result as a line of JSON."""
    from codecvit.trainers.flops import head_flops_per_sample, train_flops_per_token

    _, batch, tokens = cases(args)[args.case]
    flops = batch * tokens * train_flops_per_token(model, tokens)
    row = {
        "case": args.case,
        "side": SIDES[args.worker],
        "seconds": seconds,
        "memory": memory / 2**30,
        "flops": flops + batch * head_flops_per_sample(model.width, CLASSES),
        "peak": peak,
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
