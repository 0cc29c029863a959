"""scripts/k8s/jobset.yaml against the fields of the APIs, and against what the scripts read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FIELDS = json.loads(Path(__file__).with_name("jobset_fields.json").read_text())


def unknown(value, kind, path):
    """Fields that an object of this kind does not have, and words that a field does not know."""
    if isinstance(value, list):
        return [x for i, item in enumerate(value) for x in unknown(item, kind, f"{path}[{i}]")]
    fields = {}
    for word in FIELDS[kind].split():
        name, _, inner = word.partition(":")
        name, _, words = name.partition("=")
        fields[name] = (inner, words.split(",") if words else None)
    found = []
    for name, item in value.items():
        if name not in fields:
            found.append(f"{path}.{name}")
            continue
        inner, words = fields[name]
        if inner:
            found += unknown(item, inner, f"{path}.{name}")
        elif words and item not in words:
            found.append(f"{path}.{name} = {item!r}")
    return found


@pytest.fixture
def job_set(root):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((root / "scripts" / "k8s" / "jobset.yaml").read_text())


def test_the_apis_know_every_field(job_set):
    assert job_set["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and job_set["kind"] == "JobSet"
    assert unknown(job_set, "JobSet", "") == []
    job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["completionMode"] = "indexed"
    job_set["spec"]["network"]["dns"] = True
    assert len(unknown(job_set, "JobSet", "")) == 2


def test_names_and_numbers_agree(job_set, root):
    (job,) = job_set["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (train,) = spec["template"]["spec"]["containers"]
    values = {entry["name"]: entry.get("value") for entry in train["env"]}
    assert spec["parallelism"] == spec["completions"] == int(values["NNODES"])
    assert job["replicas"] == 1 and spec["completionMode"] == "Indexed"
    name = job_set["metadata"]["name"]
    port = train["ports"][0]["containerPort"]
    assert values["COORDINATOR"] == f"{name}-{job['name']}-0-0.{name}:{port}"
    assert train["resources"]["limits"]["nvidia.com/gpu"] == int(values["GPUS"])
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in train["volumeMounts"]} == volumes
    assert (root / train["command"][-1]).exists()
    # A run that saved starts anew for nothing: by the status that the scripts end with.
    saved = [
        rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    ]
    assert saved == [{"containerName": train["name"], "operator": "In", "values": [75]}]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # as podFailurePolicy wants it
    rule = job_set["spec"]["failurePolicy"]["rules"][0]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_the_scripts_read_every_variable(job_set, shell):
    """And of each host's variables a launch comes out that joins the others'."""
    (job,) = job_set["spec"]["replicatedJobs"]
    (train,) = job["template"]["spec"]["template"]["spec"]["containers"]
    scripts = ("launch_common.sh", "pretrain/train.sh", "pretrain/train_gpu.sh")
    text = "".join((shell.root / "scripts" / name).read_text() for name in scripts)
    for entry in train["env"]:
        assert f"{entry['name']}=${{{entry['name']}:-" in text or f"{{{entry['name']}:-" in text
    values = {entry["name"]: entry.get("value", "1") for entry in train["env"]}
    commands = shell.commands(*train["command"], **values)
    ranks = [word for words in commands for word in words if word.startswith("JAX_PROCESS_ID")]
    assert ranks == [f"JAX_PROCESS_ID={8 + i}" for i in range(8)]
