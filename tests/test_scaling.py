"""The formulas of docs/scaling.md are those of the step that is compiled."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from collectives import moved, moved_bytes, partitioned
from ml_collections import ConfigDict

from codecvit.configs.common import add_defaults
from codecvit.losses.cluster_discrimination import cluster_discrimination
from codecvit.models.config import ViTConfig
from codecvit.models.vit import ViT
from codecvit.trainers import dry_run as dry
from codecvit.trainers import mesh as meshes
from codecvit.trainers.pretrain_config import PretrainConfig
from codecvit.trainers.pretrain_step import init_state, make_train_step

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import chips  # noqa: E402
import scaling  # noqa: E402
import scaling_formulas as formulas  # noqa: E402

MODEL = {"width": 128, "depth": 3, "num_heads": 2, "mlp_dim": 384, "patch": 4}


def config(mesh, dtype="float32", rate=1.0, pieces=1, chunks=1):
    source = {"records": "none", "batch_size": 64, "budget": 32, "labels_drawn": 2}
    values = {
        "model": {**MODEL, "dtype": dtype},
        "sources": {"video": source},
        "heads": {"main": {"num_classes": 8000, "sample_rate": rate, "chunks": chunks}},
        "total_steps": 2,
        "grad_accum_steps": pieces,
        "mesh": dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)),
    }
    return PretrainConfig.from_dict(add_defaults(ConfigDict(values)).to_dict())


def as_run(made):
    (source,), (head,) = made.sources.values(), made.heads.values()
    mesh = {axis: getattr(made.mesh, axis) for axis in meshes.AXES}
    return formulas.Run(
        model=made.model,
        batch=source.batch_size,
        tokens=source.budget,
        classes=head.num_classes,
        labels=source.labels_drawn,
        sample_rate=head.sample_rate,
        chunks=head.chunks,
        pieces=made.grad_accum_steps,
        **mesh,
    )


def lower(made):
    mesh = meshes.make_mesh(made.mesh)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda key: init_state(made, key), jax.random.key(0))
        places = meshes.shard_tree(shapes, mesh, made.mesh)
        step = jax.jit(make_train_step(made), donate_argnums=0, out_shardings=(places, None))
        return step.lower(meshes.abstract(shapes, places), dry._batches(made, mesh))


@pytest.mark.parametrize("variant", ["B/16", "L/14", "H/14"])
def test_parameters_are_those_of_the_model(variant):
    model = ViTConfig.from_variant(variant)
    made = jax.eval_shape(
        lambda: ViT(model).init(
            jax.random.key(0),
            jax.numpy.zeros((1, 1, 3 * model.patch**2), "uint8"),
            jax.numpy.zeros((1, 1, 3), "int32"),
        )
    )
    assert formulas.parameters(model) == sum(leaf.size for leaf in jax.tree.leaves(made))


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)])
def test_local_sizes_are_those_of_the_sharding_rules(mesh):
    made = config(mesh)
    shapes = jax.eval_shape(lambda: init_state(made, jax.random.key(0)))
    places = meshes.shard_tree(shapes, meshes.make_mesh(made.mesh), made.mesh)

    def local(part):
        leaves = zip(jax.tree.leaves(shapes[part]), jax.tree.leaves(places[part]), strict=True)
        return sum(dry._local_bytes(leaf, place) for leaf, place in leaves if leaf.ndim)

    run, found = as_run(made), formulas.memory(as_run(made))
    assert local("params") == 4 * formulas.local_parameters(run.model, *mesh[1:]) + (
        found["centres"] / 4
    )
    # Parameters, moments, and a gradient as large as the parameters.
    assert 2 * local("params") + local("opt_state") == found["encoder"] + found["centres"]


@pytest.mark.slow
def test_the_dry_run_prints_the_same_sizes():
    made = config((2, 4, 1))
    text = dry.dry_run(made)
    run = as_run(made)
    local = formulas.memory(run)
    params = (local["encoder"] + local["centres"]) / 4
    assert f"parameters: {params / 2**20:,.1f} MiB on each device" in text
    assert f"optimiser: {2 * params / 2**20:,.1f} MiB on each device" in text
    assert f"{formulas.flops(run) / 1e12:,.2f} TFLOP a step" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "overrides", "fsdp"),
    [
        ("stage1_images.py:variant=L/14", {}, 1),
        (
            "stage1_images.py:variant=H/14,classes=20000000,fsdp=8",
            {"width": 2048, "depth": 40, "num_heads": 32, "mlp_dim": 8192},
            8,
        ),
    ],
    ids=["L", "2B"],
)
def test_the_verb_prints_the_same_sizes_for_64_devices(arguments, overrides, fsdp):
    """The real command on real sizes, in a process of its own."""
    config = f"--config={ROOT}/src/configs/{arguments}"
    fields = [f"--config.model.{name}={value}" for name, value in overrides.items()]
    done = subprocess.run(
        [sys.executable, "-m", "codecvit", "train", config, "--dry-run", "--devices=64", *fields],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr
    variant = re.search(r"variant=([^,]*)", arguments)[1]
    model = ViTConfig.from_variant(variant, **overrides)
    classes = 20_000_000 if "classes" in arguments else 2_000_000
    run = formulas.Run(
        model=model, batch=24_576, tokens=256, classes=classes, sample_rate=0.1, fsdp=fsdp,
        data=64 // fsdp,
    )  # fmt: skip
    local = formulas.memory(run)
    params = (local["encoder"] + local["centres"]) / 4 / 2**20
    found = re.search(r"parameters: ([\d,.]+) MiB", done.stdout)[1]
    assert float(found.replace(",", "")) == pytest.approx(params, abs=0.06)
    assert f"{formulas.flops(run) / 1e12:,.2f} TFLOP a step" in done.stdout


FAST = [((2, 4, 1), 1.0, 1, "bfloat16")]
SLOW = [
    ((8, 1, 1), 1.0, 1, "float32"),
    ((8, 1, 1), 0.5, 1, "bfloat16"),
    ((1, 8, 1), 1.0, 1, "bfloat16"),
    ((8, 1, 1), 1.0, 2, "float32"),
    ((2, 4, 1), 1.0, 4, "float32"),
]


@pytest.mark.parametrize(
    ("mesh", "rate", "pieces", "dtype"),
    [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_a_step_moves_what_the_formulas_say(mesh, rate, pieces, dtype, tmp_path):
    made = config(mesh, dtype, rate, pieces)
    text = partitioned(lower(made), tmp_path)
    found, told = moved_bytes(text, 8), dict.fromkeys(("all-gather", "all-reduce"), 0.0)
    for collective in formulas.communication(as_run(made)):
        told[collective.kind] = told.get(collective.kind, 0.0) + collective.size
    assert set(found) == set(told)
    # Norms and the pooling head's query stay float32, scalars are left out.
    for kind, size in told.items():
        assert found[kind] == pytest.approx(size, rel=0.01), kind


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_layer_keeps_what_the_formula_says(remat):
    """One more layer of the scan keeps so much more for the backward pass."""
    rows, tokens = 4, 64
    kept = {}
    for depth in (2, 3):
        model = ViTConfig(**{**MODEL, "depth": depth}, dtype="bfloat16", remat=remat)
        inputs = (
            jax.ShapeDtypeStruct((rows, tokens, 3 * model.patch**2), "uint8"),
            jax.ShapeDtypeStruct((rows, tokens, 3), "int32"),
            jax.ShapeDtypeStruct((rows,), "int32"),
        )
        params = jax.eval_shape(ViT(model).init, jax.random.key(0), *inputs)

        def forward(params, *inputs, model=model):
            return ViT(model).apply(params, *inputs)["pooled"]

        def backward(params, *inputs, forward=forward):
            return jax.vjp(lambda p: forward(p, *inputs), params)[1]

        residuals = jax.tree.leaves(jax.eval_shape(backward, params, *inputs))
        kept[depth] = sum(leaf.size * leaf.dtype.itemsize for leaf in residuals)
        kept[depth] -= sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    told = rows * tokens * formulas.kept_per_token(model, tokens, attention="xla")
    assert kept[3] - kept[2] == pytest.approx(told, rel=0.01)


@pytest.mark.slow
def test_the_tensor_axis_repeats_work(tmp_path):
    """docs/scaling.md says so; whoever makes it split the work changes the page."""
    text = partitioned(lower(config((4, 1, 2))), tmp_path)
    (shape,) = re.findall(
        r"f32\[(\d+,\d+)\]\S* dot\(.*?/jvp\(ViT\)/.*blocks/mlp/fc1/dot_general", text
    )
    assert shape == f"{64 // 4 * 32},{MODEL['mlp_dim']}"  # all columns, twice the rows of 8 x 1 x 1
    assert {"all-to-all", "all-gather"} & {kind for kind, *_ in moved(text)}


def head_of(classes, chips, **options):
    """Traces the head on a mesh of so many chips that need not be there."""
    rows = formulas.padded_classes(classes)

    def head(embeddings, centres, labels, key):
        loss = cluster_discrimination(
            embeddings, centres, labels, num_classes=classes, key=key, **options
        )
        return loss[0]

    shapes = [(chips, 64), (rows, 64)]
    floats = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    labels = jax.ShapeDtypeStruct((chips, 2), "int32")
    mesh = jax.sharding.AbstractMesh(
        (chips, 1, 1), meshes.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.eval_shape(head, *floats, labels, jax.random.key(0))


@pytest.mark.parametrize("classes", [2_000_000, 365_187, 400_000])
def test_the_largest_mesh_of_a_sampled_head(classes):
    most = formulas.largest_sampled_mesh(classes)
    assert most == (1024 if classes >= 524_288 else 512)
    head_of(classes, most, sample_rate=0.1)
    with pytest.raises(ValueError, match=r"blocks, which do not divide among"):
        head_of(classes, 2 * most, sample_rate=0.1)


def test_the_chunks_that_a_full_head_takes():
    assert formulas.possible_chunks(2_000_000, 4096) == [1, 3]
    assert {2, 4, 8, 16} < set(formulas.possible_chunks(2**21, 4096))
    head_of(2_000_000, 4096, chunks=3)
    with pytest.raises(ValueError, match=r"centres have 2002944 rows, which must be a multiple of"):
        head_of(2_000_000, 4096, chunks=2)


def test_collectives_take_the_time_of_rings():
    chip = chips.Chip("made up", 100.0, 16.0, 800.0, 100.0, 8, 10.0, ())
    gather = formulas.Collective("x", "all-gather", 8e9, 8)
    assert formulas.seconds(gather, chip) == pytest.approx(0.07)  # 7 of 8 GB at 100 GB/s
    reduce = dataclasses.replace(gather, kind="all-reduce")
    assert formulas.seconds(reduce, chip) == pytest.approx(0.14)
    # Over 4 groups: inside as before, and each chip moves its eighth, 3/4 of it, at 10 GB/s.
    wide = dataclasses.replace(gather, ways=32)
    assert formulas.seconds(wide, chip) == pytest.approx(0.07 + 0.075)
    with pytest.raises(ValueError, match="no figure of its network"):
        formulas.seconds(wide, dataclasses.replace(chip, network_gbs=0.0))


def test_a_step_takes_its_parts():
    """By hand for one chip: no communication; and recomputation adds a third of the encoder."""
    model = ViTConfig.from_variant("L/14", dtype="bfloat16")
    run = formulas.Run(model=model, batch=8, tokens=2048, classes=4096)
    chip = chips.CHIPS["H200"]
    parts = formulas.step_seconds(run, chip, 0.4)
    assert {name for name, time in parts.items() if time} == {"compute", "update"}
    token = 3 * 24 * (24 * 1024**2 + 4 * 2048 * 1024)
    work = 8 * (2048 * token + 6 * 1024 * 4096)
    assert parts["compute"] == pytest.approx(work / (989.5e12 * 0.4))
    moved_bytes = 7 * 4 * (formulas.parameters(model) + 4096 * 1024)
    assert parts["update"] == pytest.approx(moved_bytes / 4.8e12)
    again = dataclasses.replace(run, model=dataclasses.replace(model, remat="full"))
    more = formulas.step_seconds(again, chip, 0.4)["compute"] - parts["compute"]
    assert more == pytest.approx(8 * 2048 * token / 3 / (989.5e12 * 0.4))


def test_the_page_has_the_tables_of_the_script():
    page = scaling.PAGE.read_text()
    assert scaling.with_tables(page) == page, "run python benchmarks/scaling.py"
    with pytest.raises(ValueError, match="has no markers"):
        scaling.with_tables("# Scaling")


def test_what_the_page_says_in_words():
    """The figures in the prose of docs/scaling.md, from the formulas."""
    run = scaling.make_run("L/14", 64, batch=65_536, tokens=256, pieces=1, sample_rate=0.1)
    rows = 8 * run.piece * run.labels * run.model.width
    assert rows == pytest.approx(4.3e9, rel=0.01)
    images = run.batch * 256 * formulas.train_flops_per_token(run.model, 256)
    full = dataclasses.replace(run, sample_rate=1.0, classes=2_000_000)
    assert (formulas.flops(full) - images) / images == pytest.approx(0.025, abs=0.002)
    big = scaling.make_run("2B/14", 64, 20_000_000, pieces=1)
    assert formulas.memory(big)["centres"] == pytest.approx(10e9, rel=0.05)
    worst = max(
        1 - (parts["compute"] + parts["update"]) / sum(parts.values())
        for name in scaling.MODELS
        for chip in ("TPU v5e", "TPU v5p", "TPU v6e", "H200")
        for chips_ in (64, 4096)
        for parts in [
            formulas.step_seconds(
                scaling.make_run(name, chips_, 2**21, chunks=8, fsdp=scaling.FSDP[name]),
                chips.CHIPS[chip],
                scaling.UTILISATION,
            )
        ]
    )
    assert worst < 0.1
