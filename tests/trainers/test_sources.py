"""Which data a step reads: phases, their state, and what does not fit."""

import shutil

import fsspec
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from codecvit.data.records import RecordSet
from codecvit.files import upload
from codecvit.metrics import read_metrics
from codecvit.trainers.checkpoint_reading import restore_params
from codecvit.trainers.mesh import make_mesh
from codecvit.trainers.pretrain import pretrain, train_on_mesh
from codecvit.trainers.pretrain_config import PretrainConfig, buckets, current_phase
from codecvit.trainers.pretrain_sources import open_sources, step_work
from codecvit.trainers.sources import source_seeds


@pytest.fixture
def phased(config_values):
    """The source changes at steps 3 and 5: first its bucket, then its batch size too."""
    config_values["sources"]["video"]["phases"] = {
        "wide": {"from_step": 3, "budget": 32, "start_index": 5},
        "small": {"from_step": 5, "batch_size": 4},
    }
    config_values["total_steps"] = 6
    return PretrainConfig.from_dict(config_values)


@pytest.fixture
def mesh(phased):
    mesh = make_mesh(phased.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh


def read(sources, steps):
    return {step: sources.next(step)["video"] for step in steps}


def test_each_phase_reads_its_own_bucket_from_its_own_place(phased, mesh):
    sources = open_sources(phased)
    rows = read(sources, range(1, 7))
    shapes = [rows[step]["patches"].shape[:2] for step in range(1, 7)]
    assert shapes == [(8, 16), (8, 16), (8, 32), (8, 32), (4, 32), (4, 32)]
    again = open_sources(phased)
    first = np.concatenate([row["index"] for row in read(again, (1, 2)).values()])
    # The phase starts at example 5 of the same stream.
    assert rows[3]["index"].tolist() == first[5:13].tolist()
    assert sources.get_state() == {"video": {"phase": "small", "examples": 8}}
    sources.close()
    again.close()


def test_a_state_goes_on_in_the_middle_of_a_phase(phased, mesh):
    whole, one, two = open_sources(phased), open_sources(phased), open_sources(phased)
    rows = read(whole, range(1, 7))
    read(one, range(1, 4))  # step 4 is of the same phase, step 5 of the next
    two.set_state(one.get_state())
    for step, batch in read(two, (4, 5, 6)).items():
        np.testing.assert_array_equal(batch["index"], rows[step]["index"])
    for sources in (whole, one, two):
        sources.close()


def test_a_shuffle_window_reaches_the_loader(config_values, mesh):
    config_values["sources"]["video"]["shuffle_window"] = 8
    sources = open_sources(PretrainConfig.from_dict(config_values))
    assert sorted(sources.next(1)["video"]["index"].tolist()) == list(range(8))
    sources.close()


def test_sources_of_one_set_do_not_show_the_same_records(config_values, mesh):
    """Nor do sets of equal size; the first source by name has the order of a source alone."""
    source = config_values["sources"]["video"]
    alone = open_sources(PretrainConfig.from_dict(config_values))
    config_values["sources"] = {"z": source, "a": source, "m": source}
    sources = open_sources(PretrainConfig.from_dict(config_values))
    rows, before = sources.next(1), alone.next(1)["video"]
    orders = {name: tuple(batch["index"].tolist()) for name, batch in rows.items()}
    assert len(set(orders.values())) == 3
    for key, value in before.items():
        np.testing.assert_array_equal(rows["a"][key], value)
    sources.close()
    alone.close()


def test_seeds_of_sources_depend_on_the_run_s_seed_and_meet_no_mixture_s():
    one, other = source_seeds(3, ["b", "a", "c"]), source_seeds(4, ["c", "b", "a"])
    assert one["a"] == 3 and not set(one.values()) & set(other.values())
    assert source_seeds(3, ["c", "a", "b"]) == one
    of_sets = np.random.SeedSequence(3).generate_state(8).tolist()  # as mixing.py draws them
    assert len({*one.values(), *of_sets}) == 11


def test_the_cache_has_to_hold_what_all_sources_read_at_once(
    config_values, records, mesh, tmp_path, monkeypatch
):
    """Each alone fits; a set that two of them read is needed once, and a later phase's then."""
    memory = fsspec.filesystem("memory")
    if memory.exists("/phased"):
        memory.rm("/phased", recursive=True)
    for name in ("one", "two"):
        upload(records, f"memory://phased/{name}")
    bytes_of_one = sum(shard["bytes"] for shard in RecordSet(records).manifest["shards"])
    monkeypatch.setenv("CODECVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CODECVIT_CACHE_GB", repr(1.5 * bytes_of_one / 1e9))
    source = config_values["sources"]["video"]
    one, two = (source | {"records": f"memory://phased/{name}"} for name in ("one", "two"))

    def opened(**sources):
        open_sources(PretrainConfig.from_dict(config_values | {"sources": sources})).close()

    opened(a=one, b=one)
    opened(a=one | {"phases": {"later": {"from_step": 3, "records": two["records"]}}}, b=source)
    with pytest.raises(ValueError, match="CODECVIT_CACHE_GB = .* smaller shuffle_window"):
        opened(a=one, b=two)
    later = {"phases": {"later": {"from_step": 3, "records": two["records"]}}}
    with pytest.raises(ValueError, match="CODECVIT_CACHE_GB = .* smaller shuffle_window"):
        opened(a=one | later, b=one)


def test_a_state_of_other_sources_is_refused(phased, mesh):
    sources = open_sources(phased)
    with pytest.raises(ValueError, match=r"written with the sources \['image'\], the run has"):
        sources.set_state({"image": {"phase": "", "examples": 0}})
    with pytest.raises(ValueError, match="in phase 'gone' of config.sources.video"):
        sources.set_state({"video": {"phase": "gone", "examples": 0}})
    sources.close()


def test_the_data_of_a_late_phase_are_looked_for_at_the_start(config_values, tmp_path):
    phase = {"from_step": 3, "records": str(tmp_path / "nowhere")}
    config_values["sources"]["video"]["phases"] = {"late": phase}
    with pytest.raises(ValueError, match="nowhere is no finished record set"):
        pretrain(PretrainConfig.from_dict(config_values | {"mesh": {"data": -1}}), tmp_path / "run")


def test_work_follows_the_phase(phased):
    source = phased.sources["video"]
    assert [current_phase(source, step) for step in (1, 2, 3, 4, 5)] == ["", ""] + ["wide"] * 2 + [
        "small"
    ]
    assert step_work(phased, 1)["source_tokens"] == {"video": 8 * 16}
    assert step_work(phased, 6)["source_tokens"] == {"video": 4 * 32}
    assert step_work(phased, 6)["samples"] == 4


def test_phases_follow_their_steps_whatever_their_names(config_values):
    """A config file's ConfigDict hands them out in the order of their names."""
    config_values["sources"]["video"]["phases"] = {
        "low": {"from_step": 2, "budget": 32},
        "mid": {"from_step": 4, "batch_size": 4},
        "high": {"from_step": 6, "budget": 64},
    }
    found = PretrainConfig.from_dict(ConfigDict(config_values).to_dict())
    source = found.sources["video"]
    assert [current_phase(source, step) for step in (1, 3, 5, 7)] == ["", "low", "mid", "high"]
    sizes = [(bucket.batch_size, bucket.budget) for bucket in buckets(source).values()]
    assert sizes == [(8, 16), (8, 32), (4, 32), (4, 64)]
    assert PretrainConfig.from_dict(found.to_dict()) == found


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ({"a": {"from_step": 0}}, r"phases\.a\.from_step = 0 .* after step 0"),
        ({"a": {"from_step": 5}, "b": {"from_step": 5}}, r"phases\.b\.from_step = 5 .* step 5"),
        ({"a": {"from_step": 5, "budget": 0}}, r"phases\.a\.budget = 0 is out of range"),
        ({"a": {"from_step": 5, "size": 1}}, r"phases\.a\.size is no field"),
    ],
)
def test_wrong_phases_are_named(config_values, phases, message):
    config_values["sources"]["video"]["phases"] = phases
    with pytest.raises(ValueError, match=message):
        PretrainConfig.from_dict(config_values)


def test_a_run_passes_through_its_phases_and_resumes_in_one(config_values, records, tmp_path):
    """A second set takes over at step 3; stopped after step 4, the run ends as one in one go."""
    other = tmp_path / "other"
    shutil.copytree(records, other)
    config_values["sources"]["video"]["phases"] = {"late": {"from_step": 3, "records": str(other)}}
    values = {**config_values, "mesh": {"data": 1}, "checkpoint": {"every_steps": 2}}
    values["optim"] = {"schedule": "constant"}
    config = PretrainConfig.from_dict({**values, "total_steps": 6})
    devices = jax.devices()[:1]
    one, two = tmp_path / "one", tmp_path / "two"
    run_on(config, one, devices)
    run_on(PretrainConfig.from_dict({**values, "total_steps": 4}), two, devices)
    assert restore_params(two)[1]["data"] == {"video": {"phase": "late", "examples": 16}}
    run_on(config, two, devices)
    losses = [[row["train/loss"] for row in read_metrics(w)] for w in (one, two)]
    assert losses[0] == losses[1]


def run_on(config, workdir, devices):
    mesh = make_mesh(config.mesh, devices)
    with jax.set_mesh(mesh):
        return train_on_mesh(config, workdir, mesh)


def test_a_source_mixes_record_sets_by_their_weights(config_values, records, tmp_path):
    """3 : 1 at every step, counted on through a resume, and an unfit list of weights is named."""
    other = tmp_path / "other"
    shutil.copytree(records, other)
    source = config_values["sources"]["video"]
    source |= {"records": f"{records}+{other}", "mix_weights": [3.0, 1.0]}
    values = {**config_values, "mesh": {"data": 1}, "optim": {"schedule": "constant"}}
    devices, workdir = jax.devices()[:1], tmp_path / "run"
    for steps in (2, 4):
        run_on(PretrainConfig.from_dict({**values, "total_steps": steps}), workdir, devices)
    counts = [(row["data/video/set0"], row["data/video/set1"]) for row in read_metrics(workdir)]
    assert counts == [(6 * step, 2 * step) for step in (1, 2, 3, 4)]
    source["mix_weights"] = [1.0]
    with pytest.raises(ValueError, match="one number for each of the 2 record sets"):
        run_on(PretrainConfig.from_dict(values), tmp_path / "wrong", devices)
