"""The command line as a whole."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import codecvit
from codecvit.__main__ import VERBS, main

# Options that each verb's help has to name.
OPTIONS = {
    "pack": ("--out", "--mode", "--num-frames", "--budget", "--size", "--patch", "--draws"),
    "pack-pairs": ("--out", "--preset", "--columns", "--captions", "--join", "--video", "--shard"),
    "inspect": ("--out", "--count"),
    "show": ("--out", "--budget", "--size"),
    "demo-data": ("--out", "--train-clips", "--test-clips", "--seed", "--pairs", "--train-pairs"),
    "probe-data": ("--root", "--out", "--inputs", "--views", "--allow-missing", "--shard"),
    "llava": ("--help",),
    "cluster": ("--name", "--k", "--n", "--encoder", "--features", "--mini-batch"),
    "train": ("--config", "--workdir", "--dry-run", "--devices"),
    "train-pairs": ("--config", "--workdir"),
    "evaluate-pairs": ("--zero-shot", "--classes", "--templates", "--retrieval", "--tokenizer"),
    "clusters": ("--labels", "--out", "--workdir", "--head"),
    "watch": ("--every", "--once", "--stall"),
    "plot": ("--out", "--metrics"),
    "probe": ("--config", "--workdir"),
    "probe-report": ("--out",),
    "probe-records": ("--train", "--test", "--labels", "--descriptor"),
    "import": ("--out",),
    "embed": ("--checkpoint", "--out", "--budget", "--workers"),
    "search": ("--index", "--query", "--key", "--top", "--out"),
    "classify": ("--labels", "--model", "--checkpoint", "--templates", "--tokenizer", "--json"),
    "export": ("--out", "--format", "--dtype", "--image-size", "--shard-size", "--onnx"),
}


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_verb_is_listed(capsys):
    assert main([]) == 2
    usage = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == usage
    assert all(f"  {verb} " in usage for verb in VERBS)
    assert OPTIONS.keys() == VERBS.keys()


def test_an_unknown_verb_is_named(capsys):
    assert main(["pakc"]) == 2
    assert "no verb 'pakc'" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "stream"), [([], "stdout"), (["pakc"], "stderr")])
def test_wrong_usage_is_the_exit_status_of_the_process(arguments, stream):
    command = [sys.executable, "-m", "codecvit", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage: codecvit VERB" in getattr(done, stream)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"codecvit {codecvit.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    try:
        code = main([verb, "--help"])
    except SystemExit as exit_:  # argparse
        code = exit_.code
    assert code == 0
    words = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    assert set(OPTIONS[verb]) <= words


@pytest.mark.parametrize("verb", ["pack", "pack-pairs", "inspect", "show", "probe-data", "watch"])
def test_the_base_verbs_load_neither_jax_nor_torch(verb):
    loaded = python(
        f"""
import sys
from codecvit.__main__ import main
try:
    main([{verb!r}, "--help"])
except SystemExit:
    pass
import codecvit
codecvit.pack_video
print("LOADED", sorted({{"jax", "torch", "flax", "grain", "transformers"}} & sys.modules.keys()))
"""
    )
    assert loaded.splitlines()[-1] == "LOADED []"


def test_an_unknown_attribute_is_refused():
    assert {"load", "pack_video", "pack_image", "PatchSequence"} <= set(dir(codecvit))
    with pytest.raises(AttributeError, match="no attribute 'pack_vdeo'"):
        _ = codecvit.pack_vdeo
