"""What is kept, what is passed over, what is taken over from another run."""

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from codecvit.trainers import checkpoints as checkpoints_module
from codecvit.trainers.checkpoint_reading import find_checkpoint, initialise, restore_params
from codecvit.trainers.checkpoints import Checkpoints
from codecvit.trainers.run_config import CheckpointConfig, InitConfig


def make_state(number, ema=False, width=300):
    """A state whose every array says `number`."""
    encoder = {"a": jnp.full((width, 40), float(number)), "b": jnp.full(3, float(number))}
    heads = {name: {"centres": jnp.full((8, 4), float(number + i))} for i, name in enumerate("xy")}
    state = {"params": {"encoder": encoder, "heads": heads}, "step": jnp.int32(number)}
    return {**state, "ema": jax.tree.map(lambda leaf: leaf + 0.5, encoder)} if ema else state


def abstract(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def write(workdir, steps, config=None, **options):
    checkpoints = Checkpoints(workdir, config or CheckpointConfig(every_steps=1))
    for step in steps:
        checkpoints.save(step, make_state(step, **options), {"mark": step})
    checkpoints.close()


def read(workdir, **options):
    checkpoints = Checkpoints(workdir, CheckpointConfig(every_steps=1))
    try:
        return checkpoints.restore(abstract(make_state(0, **options)))
    finally:
        checkpoints.close()


def steps_in(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def test_a_state_comes_back_bit_by_bit(tmp_path):
    write(tmp_path, [3], ema=True)
    state, metadata = read(tmp_path, ema=True)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(3, ema=True))
    assert metadata["mark"] == 3


def on_mesh(sizes, devices):
    """A state of different numbers, its matrices cut both ways over a mesh of (data, fsdp)."""
    mesh = jax.make_mesh(
        sizes, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:devices]
    )
    state = jax.tree.map(lambda leaf: jnp.arange(leaf.size).reshape(leaf.shape), make_state(3))
    spec = {0: PartitionSpec(), 1: PartitionSpec(), 2: PartitionSpec("data", "fsdp")}
    places = jax.tree.map(lambda leaf: NamedSharding(mesh, spec[leaf.ndim]), state)
    return jax.tree.map(jax.device_put, state, places), places


@pytest.mark.parametrize(
    ("written", "read_as"),
    [(((2, 2), 4), ((1, 4), 4)), (((1, 1), 1), ((2, 4), 8)), (((2, 4), 8), ((1, 1), 1))],
)
def test_a_state_comes_back_on_any_mesh(tmp_path, written, read_as):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(3, on_mesh(*written)[0], {})
    checkpoints.close()
    wanted, places = on_mesh(*read_as)  # the same numbers
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    state, _ = checkpoints.restore(abstract(wanted))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, state, wanted)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == places


def test_without_a_checkpoint_there_is_no_state(tmp_path):
    assert read(tmp_path) == (None, {})


def test_the_newest_and_every_so_many_are_kept(tmp_path):
    config = CheckpointConfig(every_steps=1, keep=2, keep_every_steps=4)
    write(tmp_path, range(1, 11), config)
    assert steps_in(tmp_path) == [4, 8, 9, 10]
    with pytest.raises(ValueError, match="keep_every_steps = 7 .* multiple of every_steps = 2"):
        CheckpointConfig(every_steps=2, keep_every_steps=7)


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(folder):
    file = largest_file(folder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def blank(folder):
    file = largest_file(folder)
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 50] = bytes(50)
    file.write_bytes(data)


TEARS = {
    "a file cut in half": cut,
    "bytes lost in a file": blank,
    "no top metadata": lambda folder: (folder / "_CHECKPOINT_METADATA").unlink(),
    "empty top metadata": lambda folder: (folder / "_CHECKPOINT_METADATA").write_text(""),
    "a tree's manifest gone": lambda folder: (folder / "encoder/manifest.ocdbt").unlink(),
    "a tree's metadata empty": lambda folder: (folder / "train/_METADATA").write_text(""),
    "a tree gone": lambda folder: shutil.rmtree(folder / "train"),
    "an empty folder": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("intact")
    write(workdir, [1, 2])
    return workdir


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(intact, tmp_path, tear, caplog):
    shutil.copytree(intact, tmp_path, dirs_exist_ok=True)
    TEARS[tear](tmp_path / "checkpoints" / "2")
    state, metadata = read(tmp_path)
    assert (int(state["step"]), metadata["mark"]) == (1, 1)
    assert "checkpoints/2 is passed over" in caplog.text
    assert (tmp_path / "torn" / "2").is_dir()
    write(tmp_path, [2])  # the run does the step again and can save it
    assert int(read(tmp_path)[0]["step"]) == 2
    if tear == "a tree gone":  # and again
        TEARS[tear](tmp_path / "checkpoints" / "2")
        assert int(read(tmp_path)[0]["step"]) == 1
        assert (tmp_path / "torn" / "2.1").is_dir()


def test_nothing_starts_afresh_over_torn_checkpoints(intact, tmp_path):
    shutil.copytree(intact, tmp_path, dirs_exist_ok=True)
    for step in (1, 2):
        cut(tmp_path / "checkpoints" / str(step))
    with pytest.raises(
        ValueError, match=r"no whole checkpoint is left; the torn ones, \[2, 1\], lie"
    ):
        read(tmp_path)


def test_processes_load_one_step_or_none(intact, tmp_path, monkeypatch):
    """A listing that is behind is waited for; one that stays behind names who sees what."""
    shutil.copytree(intact, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(checkpoints_module, "LISTING_SECONDS", 0.0)
    others = iter([1, 1, 2])
    monkeypatch.setattr(checkpoints_module, "_every_process", lambda v: [v, next(others, v)])
    assert int(read(tmp_path)[0]["step"]) == 2
    monkeypatch.setattr(checkpoints_module, "_every_process", lambda v: [v, -1])
    with pytest.raises(ValueError, match=r"\(process 0: 2, process 1: none\): --workdir must be"):
        read(tmp_path)


def test_another_configuration_is_no_torn_checkpoint(intact, tmp_path):
    shutil.copytree(intact, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"encoder/a: the run needs \(301, 40\)"):
        read(tmp_path, width=301)
    assert steps_in(tmp_path) == [1, 2]


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("averaged")
    write(workdir, [7], ema=True)
    return workdir


def test_a_run_starts_from_the_encoder_of_another(averaged):
    made = initialise(InitConfig(checkpoint=str(averaged)), make_state(0))
    assert float(made["params"]["encoder"]["a"][0, 0]) == 7.0
    assert float(made["params"]["heads"]["x"]["centres"][0, 0]) == 0.0
    assert int(made["step"]) == 0


def test_heads_and_average_are_taken_by_name(averaged):
    config = InitConfig(checkpoint=str(averaged), parts=("heads/y",), ema=True)
    made = initialise(config, make_state(0, ema=True))
    assert float(made["params"]["encoder"]["b"][0]) == 7.5
    assert float(made["ema"]["b"][0]) == 7.5
    centres = {n: float(h["centres"][0, 0]) for n, h in made["params"]["heads"].items()}
    assert centres == {"x": 0.0, "y": 8.0}


def test_what_does_not_match_is_named(averaged, intact):
    with pytest.raises(ValueError, match=r"encoder/a: the run needs \(301, 40\), .* \(300, 40\)"):
        initialise(InitConfig(checkpoint=str(averaged)), make_state(0, width=301))
    wider = make_state(0)
    wider["params"]["encoder"]["c"] = jnp.ones(2)
    with pytest.raises(ValueError, match=r"encoder/c: .* the checkpoint has nothing"):
        initialise(InitConfig(checkpoint=str(averaged)), wider)
    fewer = make_state(0)
    del fewer["params"]["encoder"]["b"]
    with pytest.raises(ValueError, match="encoder/b: the run needs nothing"):
        initialise(InitConfig(checkpoint=str(averaged)), fewer)
    other = make_state(0)
    other["params"]["heads"]["z"] = {"centres": jnp.ones((8, 4))}
    with pytest.raises(ValueError, match=r"params/heads/z/centres: .* has nothing"):
        initialise(InitConfig(checkpoint=str(averaged), parts=("heads/z",)), other)
    with pytest.raises(ValueError, match="holds no moving average"):
        initialise(InitConfig(checkpoint=str(intact), ema=True), make_state(0))
    with pytest.raises(ValueError, match=r"config\.init\.checkpoint, which is empty"):
        InitConfig(parts=("heads/x",))


def test_the_average_can_be_read_alone(averaged, intact):
    assert restore_params(averaged)[0]["b"].tolist() == [7.0] * 3
    assert restore_params(averaged, ema=True)[0]["b"].tolist() == [7.5] * 3
    with pytest.raises(ValueError, match="holds no moving average"):
        restore_params(intact, ema=True)


FILL = """
import resource, sys
import jax.numpy as jnp
from codecvit.trainers.checkpoints import Checkpoints
from codecvit.trainers.run_config import CheckpointConfig

state = {{"params": {{"encoder": {{"a": jnp.arange(600_000.0)}}, "heads": {{}}}},
         "step": jnp.int32(1)}}
checkpoints = Checkpoints({workdir!r}, CheckpointConfig(every_steps=1))
checkpoints.save(1, state, {{}})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    checkpoints.save(2, state, {{}})
    checkpoints.wait()
except Exception as error:
    print(type(error).__name__, error)
    checkpoints.close()  # as the loop does; it must not raise an error of its own instead
    sys.exit(3)
"""


def test_a_full_disk_is_reported_and_the_earlier_checkpoint_is_whole(tmp_path):
    """No file may grow beyond 300 kB during the second save, as if the disk were full."""
    script = FILL.format(workdir=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "SaveFailed the checkpoint of step 2 could not be written to" in done.stdout, done.stdout
    assert "File too large" in done.stdout, done.stdout
    assert find_checkpoint(tmp_path).name == "1"
    assert restore_params(tmp_path)[0]["a"][-1] == 599_999.0


IN_THE_WAY = """
import os, pathlib, shutil
import jax.numpy as jnp
from codecvit.trainers.checkpoints import Checkpoints
from codecvit.trainers.run_config import CheckpointConfig

workdir = pathlib.Path({workdir!r})
state = {{"params": {{"encoder": {{"a": jnp.ones(3)}}, "heads": {{}}}}, "step": jnp.int32(1)}}
checkpoints = Checkpoints(workdir, CheckpointConfig())
checkpoints.save(1, state, {{}})
checkpoints.wait()
shutil.rmtree(workdir / "checkpoints")
(workdir / "checkpoints").write_text("in the way")
checkpoints.save(2, state, {{}})
try:
    checkpoints.save(3, state, {{}})
except OSError as error:
    print(error, flush=True)
    os._exit(3)  # as the command does: Orbax would hold this process for minutes
"""


def test_a_failed_save_is_raised_by_the_next_one(tmp_path):
    script = IN_THE_WAY.format(workdir=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "the checkpoint of step 2 could not be written" in done.stdout
