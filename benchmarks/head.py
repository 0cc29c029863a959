"""Memory and time of the head by number of classes, its parts apart, and its share of the step.

    python benchmarks/head.py [--classes 65536 131072 262144] [--rates 1 0.1] [--chunks 1 8]

The whole step is the trainer's own (encoder, head, AdamW) on random patches, on all devices of this
process. The head alone, with the same centres and labels: `draw` chooses the classes, `loss` gives
both gradients (the draw included), `update` clips them and moves all centres by AdamW. `share` is
(loss + update) / step. Times are medians. Memory is the compiler's count for one device: `state`
the centres with both moments, `working` what `loss` needs beside them, the dense gradient of the
centres (a third of `state` with float32 moments) included. A GPU's defaults are 2^16 to 2^21
classes behind ViT-L/14 at 131,072 tokens; give --batch less where that does not fit.

Needs the package's models, losses and trainers.pretrain_step, no data reader.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np
import optax

from codecvit.losses import cluster_discrimination
from codecvit.losses.class_sampling import draw_classes, num_blocks
from codecvit.trainers import mesh as meshes
from codecvit.trainers.pretrain_config import PretrainConfig
from codecvit.trainers.pretrain_step import init_state, make_run_optimizer, make_train_step

MIB = 2**20
ON_CPU = {"variant": "Ti/14", "batch": 16, "tokens": 64, "powers": range(16, 19)}
ON_GPU = {"variant": "L/14", "batch": 512, "tokens": 256, "powers": range(16, 22)}


def main():
    defaults = ON_CPU if jax.default_backend() == "cpu" else ON_GPU
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    powers = [2**power for power in defaults["powers"]]
    parser.add_argument("--classes", type=int, nargs="+", default=powers)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.1])
    parser.add_argument("--chunks", type=int, nargs="+", default=[1])
    parser.add_argument("--labels", type=int, default=8, help="label columns")
    parser.add_argument("--first-moment", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--variant", default=defaults["variant"])
    parser.add_argument("--batch", type=int, default=defaults["batch"])
    parser.add_argument("--tokens", type=int, default=defaults["tokens"])
    parser.add_argument("--remat", default="dots", help="recomputation policy of the encoder")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()

    device = jax.devices()[0]
    print(
        f"jax {jax.__version__}, {jax.device_count()} x {device.device_kind}; {args.variant}, "
        f"{args.batch} x {args.tokens} tokens, {args.labels} labels, "
        f"first moment {args.first_moment}\n"
    )
    print(
        "| classes | rate | chunks | state MiB | working MiB | draw ms | loss ms | update ms ",
        end="",
    )
    print("| step ms | share |\n" + "|---" * 10 + "|")
    for classes in args.classes:
        for rate in args.rates:
            for chunks in args.chunks:
                row = measure(args, classes, rate, chunks)
                print(f"| {classes:,} | {rate:g} | {chunks} | {row} |", flush=True)


def measure(args, classes, rate, chunks):
    """One row of the table from `state MiB` on."""
    config = make_config(args, classes, rate, chunks)
    mesh = meshes.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        batch = meshes.put_batch(random_batch(args, config.model.patch, classes), mesh)
        key = jax.random.key(0)
        shapes = jax.eval_shape(lambda k: init_state(config, k), key)
        shardings = meshes.shard_tree(shapes, mesh, config.mesh)
        state = jax.jit(lambda k: init_state(config, k), out_shardings=shardings)(key)
        step = jax.jit(make_train_step(config), donate_argnums=0, out_shardings=(shardings, None))
        step_ms, (state, _) = timed(lambda s, _: step(s, {"video": batch}), (state, None), args)

        params = {"heads": state["params"]["heads"]}
        del state  # a second set of moments follows
        embeddings = jax.random.normal(key, (args.batch, config.model.width), config.model.dtype)
        embeddings = jax.device_put(embeddings, jax.NamedSharding(mesh, meshes.BATCH_SPEC))
        draw_ms = 0.0
        if rate < 1:
            rows = len(params["heads"]["main"]["centres"])
            draw = jax.jit(lambda k, labels: draw_once(k, labels, rows, config))
            draw_ms, _ = timed(lambda *_: draw(key, batch["labels"]), (), args)

        loss = jax.jit(head_gradients(config)).lower(params, embeddings, batch, key).compile()
        loss_ms, (grads, _) = timed(lambda *_: loss(params, embeddings, batch, key), (), args)

        optimizer = make_run_optimizer(config)
        place = meshes.shard_tree(jax.eval_shape(optimizer.init, params), mesh, config.mesh)
        moments = jax.jit(optimizer.init, out_shardings=place)(params)

        def apply(params, moments, grads):
            updates, moments = optimizer.update(grads, moments, params)
            return optax.apply_updates(params, updates), moments

        apply = jax.jit(apply, donate_argnums=(0, 1))
        held = sum(
            leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((params, moments))
        )
        update_ms, _ = timed(lambda p, m: apply(p, m, grads), (params, moments), args)

    memory = loss.memory_analysis()
    working = memory.temp_size_in_bytes + memory.output_size_in_bytes
    share = (loss_ms + update_ms) / step_ms
    return (
        f"{held / MIB:,.0f} | {working / MIB:,.0f} | {draw_ms:.1f} | {loss_ms:.1f} | "
        f"{update_ms:.1f} | {step_ms:.1f} | {share:.1%}"
    )


def make_config(args, classes, rate, chunks):
    head = {
        "num_classes": classes,
        "sample_rate": rate,
        "chunks": chunks,
        "first_moment_dtype": args.first_moment,
    }
    return PretrainConfig.from_dict(
        {
            "model": {"variant": args.variant, "dtype": "auto", "remat": args.remat},
            "sources": {
                "video": {"records": "none", "batch_size": args.batch, "budget": args.tokens}
            },
            "heads": {"main": head},
            "total_steps": 1000,
        }
    )


def random_batch(args, patch, classes):
    rng = np.random.default_rng(0)
    shape = (args.batch, args.tokens)
    return {
        "patches": rng.integers(0, 256, (*shape, patch**2 * 3), np.uint8),
        "positions": np.sort(rng.integers(0, 8, (*shape, 3)), axis=1).astype(np.int32),
        "length": np.full(args.batch, args.tokens, np.int32),
        "labels": rng.integers(0, classes, (args.batch, args.labels)).astype(np.int32),
        "weight": np.ones(args.batch, np.float32),
    }


def draw_once(key, labels, rows, config):
    """The draw of all devices' classes, as the loss makes it."""
    head = config.heads["main"]
    return draw_classes(
        key,
        labels,
        sample_rate=head.sample_rate,
        num_classes=head.num_classes,
        block_rows=rows // num_blocks(rows),
        rows=rows,
    )


def head_gradients(config):
    """A function to the gradients with respect to the centres and the embeddings."""
    head = config.heads["main"]

    def loss(params, embeddings, batch, key):
        return cluster_discrimination(
            embeddings,
            params["heads"]["main"]["centres"],
            batch["labels"],
            num_classes=head.num_classes,
            weights_B=batch["weight"],
            margin=head.margin,
            scale=head.scale,
            filter_threshold=head.filter_threshold,
            chunks=head.chunks,
            sample_rate=head.sample_rate,
            key=key,
        )[0]

    return jax.grad(loss, argnums=(0, 1))


def timed(call, carry, args):
    """Median ms of a call that gets its own last result, and that result."""
    seconds = []
    for _ in range(args.repeats + 2):  # two that compile and warm up
        start = time.perf_counter()
        carry = jax.block_until_ready(call(*carry))
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds[2:])), carry


if __name__ == "__main__":
    main()
