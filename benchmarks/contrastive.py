"""Memory and time of the contrastive and caption losses by batch size, beside plain versions.

    python benchmarks/contrastive.py [--losses softmax sigmoid caption] [--batches 1024 2048 4096]
                                     [--captions 16 32 64] [--piece 256] [--chunk 128]

Both sides give the loss and all its gradients in one compiled call on one device, and must agree
before they are timed. The plain contrastive losses hold all pairs of the batch, the plain caption
loss the logits of all tokens and their targets as one-hot rows, as published code does. Ours takes
`--piece` images, or `--chunk` tokens, at a time. Memory is the compiler's count of what the call
needs beside its arguments, its results (the gradients) included. Times are medians of calls in
turn, plain, ours, plain, ours. Caption rows are captions of --tokens tokens.

Needs the package's losses alone.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from codecvit.losses import captioning, contrastive

MIB = 2**20
LOSSES = ("softmax", "sigmoid", "caption")
ON_CPU = {
    "batches": [1024, 2048, 4096, 8192],
    "captions": [16, 32, 64, 128],
    "embed": 256,
    "tokens": 32,
    "width": 256,
    "words": 8000,
    "piece": 256,
    "chunk": 128,
}
ON_GPU = {
    "batches": [4096, 8192, 16384, 32768],
    "captions": [64, 128, 256],
    "embed": 768,
    "tokens": 128,
    "width": 768,
    "words": 32000,
    "piece": 4096,
    "chunk": 2048,
}


def main():
    defaults = ON_CPU if jax.default_backend() == "cpu" else ON_GPU
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    for name, meaning in (("batches", "pairs"), ("captions", "captions")):
        parser.add_argument(
            f"--{name}", type=int, nargs="+", default=defaults[name], help=f"{meaning} of a batch"
        )
    for name, meaning in (
        ("embed", "width of an embedding"),
        ("tokens", "tokens of a caption"),
        ("width", "of the caption decoder"),
        ("words", "of the vocabulary"),
        ("piece", "images compared at a time"),
        ("chunk", "tokens taken at a time"),
    ):
        parser.add_argument(f"--{name}", type=int, default=defaults[name], help=meaning)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}; {args.dtype}; embeddings of "
        f"{args.embed}, {args.piece} images at a time; captions of {args.tokens} tokens, width "
        f"{args.width}, {args.words:,} words, {args.chunk} tokens at a time\n"
    )
    print("| loss | batch | plain MiB | ours MiB | plain / ours | plain ms | ours ms ", end="")
    print("| ours / plain |\n" + "|---" * 8 + "|")
    for loss in args.losses:
        for batch in args.captions if loss == "caption" else args.batches:
            make = caption_losses if loss == "caption" else contrastive_losses
            print(f"| {loss} | {batch:,} | {measure(args, *make(args, loss, batch))} |", flush=True)


def contrastive_losses(args, kind, batch):
    """The plain loss, ours, and what both are differentiated by."""
    key = jax.random.split(jax.random.key(0), 2)
    image, noise = (jax.random.normal(k, (batch, args.embed)) for k in key)
    image, text = (
        (x / jnp.linalg.norm(x, axis=1, keepdims=True)).astype(args.dtype)
        for x in (image, image + noise)
    )
    arrays = image, text, jnp.log(10.0), jnp.float32(-10)

    def plain(image, text, log_scale, bias):
        cosine = jnp.matmul(image, text.T, preferred_element_type=jnp.float32)
        logits = jnp.exp(log_scale) * cosine
        if kind == "sigmoid":
            sign = 2 * jnp.eye(batch) - 1
            return -jnp.sum(jax.nn.log_sigmoid(sign * (logits + bias))) / batch
        both = jax.nn.log_softmax(logits, axis=1) + jax.nn.log_softmax(logits, axis=0)
        return -jnp.mean(jnp.diagonal(both)) / 2

    def ours(image, text, log_scale, bias):
        return contrastive(
            image,
            [text],
            logit_scale=log_scale,
            logit_bias=bias if kind == "sigmoid" else None,
            kind=kind,
            chunks=-(-batch // args.piece),
        )[0]

    return plain, ours, arrays


def caption_losses(args, _, batch):
    """As `contrastive_losses`; half of the tokens are padding."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(batch, args.tokens, args.width)), args.dtype)
    kernel = jnp.asarray(0.02 * rng.normal(size=(args.width, args.words)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, args.words, (batch, args.tokens)), jnp.int32)
    mask = jnp.asarray(np.arange(args.tokens) < rng.integers(1, args.tokens, (batch, 1)))

    def plain(hidden, kernel):
        logits = jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
        one_hot = jax.nn.one_hot(targets, args.words)
        entropy = -jnp.sum(one_hot * jax.nn.log_softmax(logits), axis=-1)
        return jnp.sum(entropy * mask) / jnp.sum(mask)

    def ours(hidden, kernel):
        return captioning(hidden, kernel, targets, mask, chunk=args.chunk)[0]

    return plain, ours, (hidden, kernel)


def measure(args, plain, ours, arrays):
    """One row of the table from `plain MiB` on."""
    argnums = tuple(range(len(arrays)))
    sides = [
        jax.jit(jax.value_and_grad(loss, argnums=argnums)).lower(*arrays).compile()
        for loss in (plain, ours)
    ]
    results = [side(*arrays) for side in sides]
    tolerance = 1e-4 if args.dtype == "float32" else 2e-2
    for theirs, mine in zip(*map(jax.tree.leaves, results), strict=True):
        theirs, mine = (np.asarray(x, np.float32) for x in (theirs, mine))
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())
    del results
    seconds = np.zeros((args.repeats, 2))
    for row in seconds:
        for i, side in enumerate(sides):
            start = time.perf_counter()
            jax.block_until_ready(side(*arrays))
            row[i] = time.perf_counter() - start
    plain_ms, ours_ms = 1e3 * np.median(seconds, axis=0)
    analyses = [side.memory_analysis() for side in sides]
    plain_mib, ours_mib = (
        (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / MIB for analysis in analyses
    )
    return (
        f"{plain_mib:,.0f} | {ours_mib:,.0f} | {plain_mib / ours_mib:.1f} | "
        f"{plain_ms:,.0f} | {ours_ms:,.0f} | {ours_ms / plain_ms:.2f}"
    )


if __name__ == "__main__":
    main()
