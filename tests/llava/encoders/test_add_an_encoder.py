"""The worked example of docs/add_an_encoder.md, run as it stands there."""

from __future__ import annotations

import re
import runpy

import pytest
import torch

from codecvit.convert.hf.image_processing_onevision_encoder import CLIP_MEAN
from codecvit.llava.encoders.frames import RESIZES
from codecvit.llava.encoders.registry import KINDS
from codecvit.llava.encoders.spec import HALF, IMAGENET_MEAN


@pytest.fixture
def page(root):
    return (root / "docs" / "add_an_encoder.md").read_text()


def test_the_worked_example_runs(page, tmp_path, monkeypatch, capsys):
    script = tmp_path / "example.py"
    script.write_text("\n".join(re.findall(r"^```python\n(.*?)^```", page, flags=re.S | re.M)))
    monkeypatch.chdir(tmp_path)
    before = dict(KINDS)
    try:
        made = runpy.run_path(str(script))
        spec, tower, frames = made["videomae"], made["tower"], made["frames"]
        assert KINDS["videomae"] is spec
    finally:
        KINDS.clear()
        KINDS.update(before)
    said = re.search(r"print\(features.shape\)  # (torch.Size\(.*?\))", page).group(1)
    assert capsys.readouterr().out.strip() == said
    # And it does what the page says of every kind: places, chunks, gradients.
    changed = frames.clone()
    changed[:, 5, :8, 8:16] += 1
    moved = spec.features(tower, changed, 0) - spec.features(tower, frames, 0)
    assert moved[0].abs().amax(-1).nonzero().tolist() == [[2, 1]]
    spec.features(tower.requires_grad_(True), frames, -2).sum().backward()
    touched = {id(p) for p in tower.parameters() if p.grad is not None}
    assert {id(p) for module in spec.used(tower, -2) for p in module.parameters()} == touched
    assert torch.equal(
        spec.features(tower, frames[:, :5], -2),
        spec.features(tower, frames[:, [0, 1, 2, 3, 4, 4, 4, 4]], -2)[:, :3],
    )


def test_the_table_of_kinds_is_the_registry(page):
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", page, flags=re.M)
    assert [kind for kind, _ in rows] == list(KINDS)
    means = {"CLIP's": CLIP_MEAN, "ImageNet's": IMAGENET_MEAN, "0.5": HALF}
    for kind, row in rows:
        spec = KINDS[kind]
        types, together, tubelet, layer, pixels, shape = (cell.strip() for cell in row.split("|"))
        assert all(f"`{config.model_type}`" in types for config, _ in spec.classes)
        assert layer.strip("`") == str(spec.select_layer)
        assert means[pixels] == tuple(spec.image_mean)
        if spec.input == "frames":
            assert together.split()[0] == str(spec.chunk)
            assert tubelet == str(spec.tubelet)
            assert shape == spec.resize
            assert shape in RESIZES
