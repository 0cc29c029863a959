"""Processes that differ refuse to train, and say which of them is odd."""

import sys

import pytest
from train_processes import finish, start

from codecvit.trainers import agreement


def told(count=4, **odd):
    """Facts of processes that agree, but for those named p0, p1, ..."""
    facts = [{"host": f"w-{i}", "jaxlib": "0.10.2", "config.seed": "0"} for i in range(count)]
    for process, change in odd.items():
        facts[int(process[1:])].update(change)
    return facts


def test_equal_processes_agree():
    assert agreement.differences(told()) == ""
    assert agreement.differences(told(1)) == ""


def test_the_odd_host_is_named_with_both_values():
    message = agreement.differences(told(p2={"jaxlib": "0.10.1"}))
    assert (
        "jaxlib: odd is host w-2 (process 2): 0.10.1; 3 of 4 processes have 0.10.2"
        in message.splitlines()[1]
    )
    assert "config.seed" not in message
    assert all(f"w-{i}" not in message for i in (0, 1, 3))


def test_every_field_and_every_odd_host_is_named():
    lines = agreement.differences(
        told(p0={"jaxlib": "1"}, p1={"jaxlib": "2", "config.seed": "7"})
    ).splitlines()
    assert len(lines) == 4
    assert "odd is host w-0 (process 0): 1; odd is host w-1 (process 1): 2; 2 of 4" in lines[1]
    assert "config.seed: odd is host w-1 (process 1): 7; 3 of 4 processes have 0" in lines[2]


def test_a_tie_names_both_groups_and_blames_none():
    message = agreement.differences(told(p1={"jaxlib": "1"}, p3={"jaxlib": "1"}))
    assert "odd" not in message
    assert (
        "no majority; host w-0 (process 0), host w-2 (process 2): 0.10.2; "
        "host w-1 (process 1), host w-3 (process 3): 1"
    ) in message


def test_a_field_that_a_process_lacks_differs():
    facts = told(3)
    del facts[1]["config.seed"]
    assert "odd is host w-1 (process 1): nothing" in agreement.differences(facts)


def test_processes_of_one_host_stand_together():
    facts = [{"host": f"w-{i // 4}", "x": str(i // 4 == 2)} for i in range(16)]
    assert "odd is host w-2 (process 8, 9, 10, 11): True;" in agreement.differences(facts)


def test_long_lists_are_cut():
    facts = [{"host": f"w-{i}", **{f"f{n}": str(i > 50) for n in range(40)}} for i in range(100)]
    lines = agreement.differences(facts).splitlines()
    assert len(lines) == 13
    assert lines[-2] == "  (+30 more fields)"
    assert "and 41 more: True; 51 of 100 processes have False" in lines[1]


def test_a_process_that_does_not_answer_is_named():
    facts = told()
    facts[2] = None
    assert agreement.differences(facts) == "no answer from process 2 of 4: see the log of its host"


def test_every_field_of_a_configuration_counts():
    values = {"optim": {"lr": 1e-3, "freeze": ()}, "sources": {}, "name": "a"}
    assert agreement.config_facts(values, "gs://bucket/run") == {
        "--workdir": "gs://bucket/run",
        "config.optim.lr": "0.001",
        "config.optim.freeze": "[]",
        "config.sources": "{}",
        "config.name": '"a"',
    }


def test_the_hash_sees_content_and_names_of_source_files_alone(tmp_path):
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "x.py"
    file.write_text("1")
    first = agreement.source_hash(tmp_path)
    (tmp_path / "a" / "x.pyc").write_text("cache")
    assert agreement.source_hash(tmp_path) == first
    file.write_text("2")
    second = agreement.source_hash(tmp_path)
    file.rename(tmp_path / "a" / "y.py")
    assert len({first, second, agreement.source_hash(tmp_path)}) == 3


def test_code_and_devices_of_this_process_are_told():
    code, devices = agreement.code_facts(), agreement.device_facts()
    assert code["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert code["jax"][0].isdigit()
    assert code["libtpu"] == agreement.NOTHING or code["libtpu"][0].isdigit()
    assert devices["device kind"] and int(devices["local devices"]) >= 1


def test_one_process_agrees_with_itself_and_starts_anew_each_time():
    one, two = (agreement.require_agreement({"a": 1}, "run") for _ in range(2))
    assert one != two


@pytest.mark.slow
def test_two_processes_with_different_configurations_both_refuse(records, tmp_path):
    odd = {1: ["--config.optim.lr=0.5", "--config.mesh.fsdp=2"]}
    codes, outputs = finish(start(records, tmp_path, flags=odd, steps=5))
    assert codes == [1, 1], "\n".join(outputs)
    for output in outputs:
        (message,) = output.split("codecvit train: ")[1:]
        assert "so none of them trains" in message
        assert "config.optim.lr: no majority;" in message
        assert "(process 0): 0.001;" in message and "(process 1): 0.5" in message
        assert "config.mesh.fsdp" in message
    assert not (tmp_path / "heartbeats").exists()
    assert not (tmp_path / "checkpoints").exists()
