"""Rows in blocks, memory-mapped files, mini-batches, and going on after a kill."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from codecvit.cluster.blocks import RowBlocks
from codecvit.cluster.kmeans import kmeans
from codecvit.cluster.nearest import nearest_centres


def blobs(rows=600, groups=12, width=16, seed=0, spread=0.2):
    rng = np.random.default_rng(seed)
    middles = rng.normal(size=(groups, width))
    of = rng.integers(0, groups, rows)
    return (middles[of] + spread * rng.normal(size=(rows, width))).astype(np.float32), of


def devices(count):
    axes = (AxisType.Auto,)
    return jax.make_mesh((count,), ("rows",), axis_types=axes, devices=jax.devices()[:count])


@pytest.mark.parametrize("count", [1, 8])
def test_blocks_change_nothing_but_rounding(count):
    x, _ = blobs()
    whole = kmeans(x, 12, seed=0, mesh=devices(count))
    for block_rows in (64, 100, 599):
        found = kmeans(x, 12, seed=0, mesh=devices(count), block_rows=block_rows)
        np.testing.assert_allclose(found.centres_KD, whole.centres_KD, atol=1e-5)
        assert found.counts_K.tolist() == whole.counts_K.tolist()
        assert found.inertia == pytest.approx(whole.inertia, rel=1e-4)


def test_a_memory_mapped_file_is_clustered_and_labelled_like_the_array(tmp_path):
    x, _ = blobs()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    one = kmeans(x, 12, seed=0, block_rows=128)
    other = kmeans(mapped, 12, seed=0, block_rows=128)
    np.testing.assert_array_equal(one.centres_KD, other.centres_KD)
    np.testing.assert_array_equal(
        nearest_centres(mapped, other.centres_KD, 3, chunk=100),
        nearest_centres(x, one.centres_KD, 3),
    )


def test_a_row_that_is_not_finite_is_named_by_its_number(tmp_path):
    x, _ = blobs()
    x[417, 3] = np.nan
    for call in (
        lambda: kmeans(x, 4, seed=0, init="random", block_rows=100),
        lambda: kmeans(x, 4, seed=0, init="random", batch_rows=100),
        lambda: nearest_centres(x, x[:5], 2, chunk=100),
    ):
        with pytest.raises(ValueError, match="row 417 of the features is not finite"):
            call()


def test_an_empty_cluster_is_repaired_across_blocks():
    """Two first centres far from every row take rows of their own."""
    x, _ = blobs()
    far = -x.mean(0, keepdims=True) * np.ones((2, 1), np.float32)
    found = kmeans(x, 12, seed=0, init=np.concatenate([x[:10], far]), block_rows=100)
    assert (found.counts_K > 0).all()
    assert found.counts_K.sum() == 600


def test_mini_batches_come_close_to_lloyd():
    x, of = blobs(rows=4000)
    lloyd = kmeans(x, 12, seed=0)
    first = kmeans(x, 12, seed=0, iterations=1)
    small = kmeans(x, 12, seed=0, iterations=5, batch_rows=256)
    assert small.inertia[-1] < 1.1 * lloyd.inertia[-1]
    assert small.inertia[-1] <= first.inertia[0] * 1.001
    assert len(small.inertia) == 6  # five passes and the measurement at the end
    again = kmeans(x, 12, seed=0, iterations=5, batch_rows=256)
    np.testing.assert_array_equal(small.centres_KD, again.centres_KD)


def test_each_pass_draws_all_rows_in_batches_of_its_own(monkeypatch):
    drawn, shuffled = [], RowBlocks.shuffled

    def noted(self, generator):
        for block in shuffled(self, generator):
            drawn.append(block.index.tolist())
            yield block

    monkeypatch.setattr(RowBlocks, "shuffled", noted)
    kmeans(blobs(rows=300)[0], 4, seed=0, iterations=3, batch_rows=100, init="random")
    passes = [drawn[at : at + 3] for at in (0, 3, 6)]
    assert len(drawn) == 9
    assert all(sorted(sum(batches, [])) == list(range(300)) for batches in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]


def test_a_mini_batch_is_the_same_on_every_mesh():
    """100 rows do not divide by 8 devices; a larger batch would end elsewhere."""
    x, _ = blobs(rows=3000, groups=60, spread=0.7)
    one, shared = (
        kmeans(x, 20, seed=0, iterations=2, batch_rows=100, mesh=devices(count)) for count in (1, 8)
    )
    np.testing.assert_allclose(shared.centres_KD, one.centres_KD, atol=1e-5)
    assert shared.counts_K.tolist() == one.counts_K.tolist()


def test_a_mini_batch_centre_is_the_mean_of_all_its_rows():
    """One centre, one pass: the direction of the sum of the unit rows, whatever the batches."""
    x, _ = blobs(rows=500, groups=1)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    # The first centre counts for nothing: it has averaged no row yet.
    found = kmeans(x, 1, seed=0, iterations=1, batch_rows=64, init=x[:1])
    mean = unit.sum(0)
    # Each batch pulls the unit centre by its count, which shrinks the earlier sum a little.
    assert found.centres_KD[0] @ (mean / np.linalg.norm(mean)) > 0.9999


SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from codecvit.cluster import kmeans as module
from codecvit.cluster.progress_file import ProgressFile

save = ProgressFile.save
def slow(self, progress):
    save(self, progress)
    print("saved", progress.update, flush=True)
    time.sleep(0.3)
ProgressFile.save = slow
x = np.load({rows!r}, mmap_mode="r", allow_pickle=False)
module.kmeans(x, 40, seed=3, iterations=12, batch_rows={batch}, block_rows=256,
              progress=Path({file!r}))
"""


@pytest.mark.parametrize("batch", [0, 300])
def test_a_killed_clustering_goes_on_to_the_same_centres(tmp_path, batch):
    x, _ = blobs(rows=3000, groups=60, spread=0.7)
    np.save(tmp_path / "x.npy", x)
    file = tmp_path / "progress.safetensors"
    script = SCRIPT.format(rows=str(tmp_path / "x.npy"), batch=batch, file=str(file))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("saved 3"):
            process.kill()
            break
    process.communicate()
    assert file.is_file()
    options = {"seed": 3, "iterations": 12, "batch_rows": batch, "block_rows": 256}
    whole = kmeans(x, 40, **options)
    with pytest.raises(ValueError, match="was left by a clustering with another k: delete it"):
        kmeans(x, 41, progress=file, **options)
    other = x.copy()
    other[1500, 7] += 1
    with pytest.raises(ValueError, match="with another rows"):
        kmeans(other, 40, progress=file, **options)
    with pytest.raises(ValueError, match="iterations=2: .* already holds [3-9] updates: ask"):
        kmeans(x, 40, progress=file, **(options | {"iterations": 2}))
    found = kmeans(x, 40, progress=file, **options)
    np.testing.assert_array_equal(found.centres_KD, whole.centres_KD)
    assert found.inertia == whole.inertia
    # The file stays until the caller's result is safe: a finished clustering is found again.
    again = kmeans(x, 40, progress=file, **options)
    np.testing.assert_array_equal(again.centres_KD, whole.centres_KD)
    assert again.inertia == whole.inertia


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"init": "random"}, "init"),
        ({"init": np.eye(4, 16, dtype=np.float32)}, "init"),
        ({"batch_rows": 100}, "batch_rows"),
    ],
)
def test_the_progress_of_a_clustering_with_other_options_is_refused(tmp_path, change, named):
    x, _ = blobs(rows=300)
    options = {"seed": 3, "iterations": 2, "progress": tmp_path / "progress.safetensors"}
    kmeans(x, 4, **options)
    with pytest.raises(ValueError, match=f"left by a clustering with another {named}: delete"):
        kmeans(x, 4, **(options | change))


def test_a_damaged_progress_file_is_named(tmp_path):
    file = tmp_path / "progress.safetensors"
    file.write_bytes(b"nothing")
    x, _ = blobs()
    with pytest.raises(ValueError, match=r"progress\.safetensors is damaged"):
        kmeans(x, 4, seed=0, progress=file)
