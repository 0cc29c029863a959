"""The attentive probe: a frozen encoder, a trained attention-pooling head, one labelled data set.

    codecvit probe-data ssv2 --root DOWNLOAD --out probe_data/ssv2 --inputs frames8,codec2048
    codecvit probe --workdir=runs/probe_ssv2 --config=src/configs/probe.py:\\
        dataset=ssv2,data=probe_data/ssv2,encoder=runs/L,input=codec2048
    codecvit probe-report runs/probe_* --out report

(= python -m codecvit.trainers.probe ...). Several learning rates train at once, each a head of its
own; a held-out part of the training data chooses the epoch and the rate, and that head is measured
on the test split once. Run it again with the same --workdir and it goes on where it stopped;
SIGTERM saves and exits 0. The result lies in WORKDIR/results.json, what came of every test example
in test.npz, and which examples had no record that could be read in left_out.json.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ... import __version__
from ...data.augment import AugmentConfig
from ...data.pipeline import make_loader
from ...data.records import RecordSet
from ...files import PathOrUrl, exists, join, make_folder, read_text, write_atomic, write_json
from ...metrics import MetricWriter, Throughput
from ...models.classifier import AttentiveClassifier
from .. import heartbeat
from .. import mesh as meshes
from ..checkpoints import Checkpoints
from ..command import run_command
from ..preemption import StopSignal
from .config import AttentiveProbeConfig
from .encoders import open_encoder
from .examples import read_probe_data, shown, split_training
from .passes import Passes
from .results import LEFT_OUT, OUTCOMES, RESULTS, describe, left_out
from .scores import baselines, embed_training, held_out_scores, score_test
from .step import init_probe, keep_best, make_probe_step, make_scores

# Rows of a batch have a multiple of this many tokens: a TPU's attention needs it.
TOKEN_STEP = 128


def probe(config: AttentiveProbeConfig, workdir: PathOrUrl) -> dict[str, Any] | None:
    """Runs or continues one probe.

    Args:
      config: the probe.
      workdir: its folder or gs:// URL: config.json, metrics.jsonl, checkpoints/STEP/, results.json,
        test.npz, left_out.json.

    Returns:
      What results.json says; None for a run that SIGTERM has stopped.

    Raises:
      ValueError: configuration, data, encoder or an earlier checkpoint don't fit.
    """
    mesh = meshes.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        return probe_on_mesh(config, os.fspath(workdir), mesh)


def probe_on_mesh(config: AttentiveProbeConfig, workdir: str, mesh: Mesh) -> dict[str, Any] | None:
    """`probe` on a mesh that is set already."""
    make_folder(workdir)
    first_process = jax.process_index() == 0
    if config.batch_size % mesh.size:
        raise ValueError(
            f"config.batch_size = {config.batch_size} must be a multiple of the {mesh.size} devices"
        )

    # --- Data ---------------------------------------------------------------------------------
    data = read_probe_data(config.data, config.input)
    if config.baselines and data.metric != "top1":
        raise ValueError(f"config.baselines needs one label an example; {data.name} has several")
    fit, choose = split_training(data, config.held_out, config.seed)
    records = data.train.views[0]
    example_of = data.train.examples_of(0)
    budget = -(-data.longest // TOKEN_STEP) * TOKEN_STEP
    part, parts = meshes.batch_part(mesh)
    loader = make_loader(
        records,
        only=fit,
        batch_size=config.batch_size,
        budget=budget,
        augment=AugmentConfig(flip=config.flip),
        seed=config.seed,
        process_index=part,
        process_count=parts,
        worker_count=config.loader_workers,
    )
    # The stream of examples is endless: an epoch ends within a batch, and nothing is dropped.
    ends = [math.ceil(e * len(fit) / config.batch_size) for e in range(1, config.epochs + 1)]
    total_steps = ends[-1]

    # --- Encoder and heads ----------------------------------------------------------------------
    encoder = open_encoder(config, data, budget, mesh)
    on_cpu = jax.default_backend() == "cpu"
    dtype = ("float32" if on_cpu else "bfloat16") if config.dtype == "auto" else config.dtype
    classifier = AttentiveClassifier(data.num_classes, dtype)
    scores = make_scores(classifier, data.metric)
    chooser = Passes(config, records, choose, budget, encoder, scores, mesh)

    def fresh(key: jax.Array) -> dict[str, Any]:
        return init_probe(config, classifier, encoder.width, key)

    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(fresh, key)
    shardings = meshes.shard_tree(shapes, mesh, config.mesh)
    checkpoints = Checkpoints(workdir, config.checkpoint)
    state, metadata = checkpoints.restore(meshes.abstract(shapes, shardings))
    if state is None:
        state = jax.jit(fresh, out_shardings=shardings)(key)
    else:
        loader.set_state(metadata["examples"])
    step_fn = jax.jit(
        make_probe_step(config, classifier, total_steps, data.metric),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    choose_fn = jax.jit(keep_best, donate_argnums=0, out_shardings=shardings)

    # --- Bookkeeping --------------------------------------------------------------------------
    start_step = int(state["step"])
    heartbeat.enter("starting", total_steps, start_step)
    stop = StopSignal()
    writer = MetricWriter(
        workdir,
        total_steps,
        start_step,
        active=first_process,
        wandb_project=config.wandb_project,
        config=config.to_dict(),
    )
    if first_process:
        write_json(join(workdir, "config.json"), config.to_dict())
    writer.note(
        f"{data.name}, {config.input}: {len(fit)} examples to fit, {len(choose)} to choose by, "
        f"{len(data.test.keys)} to test; steps {start_step} to {total_steps}"
    )
    for name, split in (("train", data.train), ("test", data.test)):
        if split.missing:
            wrong = "left out" if name == "train" else "counted as wrong"
            writer.note(
                f"{len(split.missing)} of {len(split.keys)} examples of {name} have no record and "
                f"are {wrong}: {shown(split.missing)}"
            )
    names = [f"lr={lr:g}" for lr in config.lrs]

    def choose_best(step: int) -> dict[str, Any]:
        heartbeat.enter("evaluation")
        found = dict(
            zip(names, held_out_scores(chooser, state["params"]["heads"], data), strict=True)
        )
        numbers = {f"val/{key}/{n}": v for n, row in found.items() for key, v in row.items()}
        writer.write(step, numbers)
        scores_R = np.array([row[data.metric] for row in found.values()], np.float32)
        return choose_fn(state, scores_R, np.int32(ends.index(step) + 1))

    def log(step: int, step_metrics: dict[str, jax.Array]) -> None:
        found = {
            f"train/{key}/{n}": float(v)
            for key, values in jax.device_get(step_metrics).items()
            for n, v in zip(names, values, strict=True)
        }
        found |= throughput.rates(
            samples=config.batch_size,
            tokens=config.batch_size * budget,
            flops=config.batch_size * encoder.flops,
            devices=mesh.size,
            peak_tflops=0,
        )
        writer.write(step, found)

    def save(step: int) -> None:
        heartbeat.enter("checkpoint")
        about = {"config": config.to_dict(), "version": __version__, "examples": loader.get_state()}
        checkpoints.save(step, state, about)

    # --- Train --------------------------------------------------------------------------------
    try:
        if start_step == total_steps and exists(join(workdir, RESULTS)):
            writer.note(f"{workdir} is finished")
            return json.loads(read_text(join(workdir, RESULTS)))
        throughput = Throughput()
        for step in range(start_step + 1, total_steps + 1):
            # Asked for after the save below: a checkpoint's position is that of what was seen.
            heartbeat.enter("data")
            asked = time.perf_counter()
            rows = next(loader)
            throughput.waited(time.perf_counter() - asked)
            heartbeat.enter("step")
            about = {
                "targets": data.train.targets_NC[example_of[rows["index"]]].astype(np.float32),
                "weight": rows["weight"],
            }
            features = encoder.encode(rows)
            batch = {key: features[key] for key in ("tokens", "length")}
            state, step_metrics = step_fn(state, batch | meshes.put_batch(about, mesh))

            last = step == total_steps
            if step % config.log_steps == 0 or last:
                log(step, step_metrics)
            heartbeat.stepped(step)
            if step in ends:
                state = choose_best(step)
            stopped = stop.reached(step) and not last
            if step % config.checkpoint.every_steps == 0 or last or stopped:
                save(step)
            if stopped:
                writer.note(f"SIGTERM: saved step {step}, stopping")
                return None
        loader.close()  # before the test: its workers are no longer needed
        heartbeat.enter("evaluation")

        # --- Test, once -----------------------------------------------------------------------
        def passes(records: RecordSet, rows: np.ndarray) -> Passes:
            return Passes(config, records, rows, budget, encoder, scores, mesh)

        head = jax.jit(lambda params: jax.tree.map(lambda leaf: leaf[None], params))(
            state["best"]["params"]
        )
        views = [passes(v, r[r >= 0]) for v, r in zip(data.test.views, data.test.rows, strict=True)]
        test = score_test(views, head, data, config.baselines)
        results = describe(config, data, encoder, state, test)
        if test.embeddings is not None:
            train = embed_training(passes(records, np.r_[fit, choose]), head, data)
            results["baselines"] = baselines(train, test.embeddings, data.num_classes)
        numbers = results["test"] | results.get("baselines", {})
        writer.write(total_steps, {f"test/{key}": value for key, value in numbers.items()})
        if first_process:
            arrays = io.BytesIO()
            np.savez(arrays, keys=np.array(data.test.keys), **test.outcomes)
            write_atomic(join(workdir, OUTCOMES), arrays.getvalue())
            write_json(join(workdir, LEFT_OUT), left_out(data, test))
            write_json(join(workdir, RESULTS), results)
        return results
    finally:
        loader.close()
        chooser.close()
        checkpoints.close()
        writer.close()
        stop.close()


def main(argv: list[str]) -> int:
    """The verb `probe`."""
    parse = AttentiveProbeConfig.from_dict
    return run_command("codecvit probe", __doc__, parse, probe, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
