"""The JAX weights that OpenVision publishes: recognised, imported, exported."""

from __future__ import annotations

import logging

import jax
import numpy as np
import orbax.checkpoint
import pytest

from codecvit.convert.export_verb import main as export_verb
from codecvit.convert.import_hf import main as import_verb
from codecvit.convert.openclip.read import is_clip, read_clip

from .helpers import SIZE, in_their_jax, publish, same_trees


@pytest.fixture
def orbax_folder(make_parts, make_weights, tmp_path):
    """(folder, parts, params): what OpenVision's trainer saves, by Orbax's manager."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    parts = make_parts(decoder="queries")
    params = make_weights(parts)
    flat = in_their_jax(params, parts, heads_axis=True)
    tree = {}
    for name, array in flat.items():
        *parents, last = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = array
    folder = tmp_path / "theirs" / "jax_orbax_weight"
    moments = jax.tree.map(np.zeros_like, tree)
    manager = orbax.checkpoint.CheckpointManager(folder / "checkpoint.npz")
    for step in (9, 10):
        state = {"params": tree, "opt": [{"count": np.int32(step), "mu": moments}, None]}
        manager.save(step, args=orbax.checkpoint.args.StandardSave(state))
    manager.close()
    return folder, parts, params


def test_jax_weights_are_recognised_wherever_they_are_named(orbax_folder):
    folder, parts, params = orbax_folder
    for path in (folder.parent, folder, folder / "checkpoint.npz" / "10"):
        assert is_clip(path)
        found = read_clip(path)
        assert found.parts == parts
        same_trees(found.params, params)


def test_jax_weights_become_a_checkpoint_and_a_folder(orbax_folder, vocabulary, tmp_path, capsys):
    folder, parts, params = orbax_folder
    out = tmp_path / "checkpoint"
    assert import_verb([str(folder), "--out", str(out)]) == 0
    same_trees(read_clip(out).params, params)
    assert export_verb([str(out), "--out", str(tmp_path / "back"), "--image-size", "32"]) == 1
    assert "tokenizer is not known" in capsys.readouterr().err
    arguments = [str(out), "--out", str(tmp_path / "back"), "--image-size", "32"]
    arguments += ["--format", "openclip", "--tokenizer", str(vocabulary)]
    assert export_verb(arguments) == 0
    same_trees(read_clip(tmp_path / "back").params, params)


def test_their_folder_around_the_jax_weights_says_the_image_size(
    orbax_folder, make_parts, vocabulary, tmp_path
):
    folder, parts, params = orbax_folder
    both = publish(
        tmp_path / "both",
        make_parts(),
        {k: v for k, v in params.items() if k != "decoder"},
        vocabulary,
    )
    (folder).rename(both / "jax_orbax_weight")
    assert read_clip(both).parts.decoder is None  # the PyTorch weights
    found = read_clip(both / "jax_orbax_weight")
    assert found.parts == parts and found.origin.image_size == SIZE
