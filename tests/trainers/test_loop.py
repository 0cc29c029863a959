"""The loop alone, with a step that does nothing: what it says, counts and measures."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codecvit import metrics
from codecvit.metrics import read_metrics
from codecvit.trainers.checkpoint_reading import read_metadata
from codecvit.trainers.checkpoints import Checkpoints
from codecvit.trainers.loop import Loop
from codecvit.trainers.mesh import make_mesh
from codecvit.trainers.preemption import TrainingStopped
from codecvit.trainers.run_config import CheckpointConfig, MeshConfig, ProfileConfig, RunConfig
from codecvit.trainers.stamp import code_stamp

COUNTERS = ("step", "nan_steps", "nan_steps_in_row", "bad_records")


class NoData:
    """Sources whose batches are empty of anything but their index."""

    def next(self, step):
        return {"image": {"index": np.arange(2)}, "video": {"index": np.arange(2)}}

    def taken(self):
        return {}

    def counts(self):
        return {}

    def get_state(self):
        return {}

    def close(self):
        pass


def train(workdir, step=1.0, evaluate=lambda step, state: {}, begin=0, **options):
    """Runs the loop; `step` gives the loss of the source `video` by the number of the step."""
    config = RunConfig(**{"total_steps": begin + 10, "mesh": MeshConfig(data=1), **options})
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state = {name: jnp.int32(0) for name in COUNTERS} | {"step": jnp.int32(begin)}
    state |= {"params": {"encoder": {"a": jnp.ones(3)}}, "loss_spikes": {"spikes": jnp.int32(0)}}

    def train_step(state, batches):
        done = int(state["step"]) + 1
        video = step(done) if callable(step) else step
        bad = int(not np.isfinite(video))
        counts = {"step": done, "nan_steps": state["nan_steps"] + bad}
        counts["nan_steps_in_row"] = (state["nan_steps_in_row"] + 1) * bad
        losses = {"image/loss": 1.0, "video/loss": video, "loss": 1.0 + video}
        return state | {n: jnp.int32(v) for n, v in counts.items()}, {
            name: jnp.float32(loss) for name, loss in losses.items()
        }

    def work(step):
        return {"samples": 4, "tokens": 8, "flops": 0.0, "source_tokens": {"image": 4, "video": 4}}

    with jax.set_mesh(mesh):
        checkpoints = Checkpoints(workdir, CheckpointConfig(every_steps=100))
        loop = Loop(config, workdir, mesh, NoData(), checkpoints, state, work, evaluate)
        return loop.run(train_step)


def test_a_step_between_two_log_lines_that_is_not_finite_is_named(tmp_path, caplog):
    """And its source: the log line of step 5 itself is as always."""
    train(tmp_path, lambda step: float("nan") if step in (2, 4) else 1.0, log_steps=5)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.endswith("change nothing: step 2: loss of video; step 4: loss of video")
    assert [row["train/nan_steps"] for row in read_metrics(tmp_path)] == [2, 2]


def test_the_source_of_nan_steps_in_a_row_is_named(tmp_path):
    with pytest.raises(TrainingStopped) as stopped:
        train(
            tmp_path, lambda step: 1.0 if step < 3 else float("inf"), log_steps=4, max_nan_steps=2
        )
    for part in (
        "step 4: loss or gradient not finite for 2 steps in a row (config.max_nan_steps = 2; ",
        "losses: image 1, video inf; step 3: loss of video; step 4: loss of video",
    ):
        assert part in str(stopped.value)


@pytest.mark.parametrize(("begin", "steps"), [(0, range(11)), (7, range(8, 18))])
def test_an_evaluation_is_asked_for_at_step_0_and_after_each_step(tmp_path, begin, steps):
    """And not again for the step at which a run goes on."""
    asked = []
    train(
        tmp_path, evaluate=lambda step, state: asked.append(step) or {"probe/a": 1.0}, begin=begin
    )
    assert asked == list(steps)
    assert [row["step"] for row in read_metrics(tmp_path) if "probe/a" in row] == asked


def test_a_checkpoint_says_which_code_wrote_it(tmp_path):
    train(tmp_path)
    written = read_metadata(tmp_path)
    assert written["code"] == code_stamp()
    assert written["code"]["source code"] and written["code"]["jax"] == jax.__version__


def test_rates_leave_out_compilation_and_evaluations(tmp_path, monkeypatch):
    """Steps of 2 seconds, whatever a first step, or an evaluation between two lines, takes."""
    now = [0.0]

    def clock():
        return now[0]

    def step(number):
        now[0] += 100 if number == 1 else 2
        return 1.0

    def evaluate(number, state):
        now[0] += 1000 * (number in (0, 4))
        return {"probe/a": 1.0} if number in (0, 4) else {}

    fake = types.SimpleNamespace(perf_counter=clock, monotonic=clock, time=clock)
    monkeypatch.setattr(metrics, "time", fake)
    train(tmp_path, step, evaluate, log_steps=3)
    rows = [row for row in read_metrics(tmp_path) if "train/loss" in row]
    assert [row["step"] for row in rows] == [3, 6, 9, 10]
    assert [row["perf/step_seconds"] for row in rows] == [2.0] * 4


@pytest.mark.parametrize(("start", "told"), [(7, True), (8, False), (17, False), (18, True)])
def test_a_profile_window_outside_of_this_start_is_told(tmp_path, caplog, monkeypatch, start, told):
    """As after a resume behind the window."""
    begun = []
    monkeypatch.setattr(jax.profiler, "start_trace", begun.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    train(tmp_path, begin=7, profile=ProfileConfig(start_step=start, num_steps=2))
    assert len(begun) == (not told)
    assert [record.getMessage() for record in caplog.records] == told * [
        f"config.profile.start_step = {start} is none of the steps 8 to 17 of this start: "
        "nothing is recorded"
    ]
