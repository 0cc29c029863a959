"""From made clips to a report, by the verbs as docs/probe.md names them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from codecvit.__main__ import main
from codecvit.convert.export import export
from codecvit.models.config import ViTConfig
from codecvit.models.vit import ViT

CONFIG = Path(__file__).resolve().parents[2] / "src" / "configs" / "probe.py"
INPUTS = ("frames2", "codec128")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    config = ViTConfig(width=64, depth=1, num_heads=1, mlp_dim=64)
    patches, positions = np.zeros((1, 1, 588), np.uint8), np.zeros((1, 1, 3), np.int32)
    params = ViT(config).init(jax.random.key(0), patches, positions)["params"]
    return export(jax.device_get(params), config, tmp_path_factory.mktemp("encoder") / "vit")


@pytest.mark.slow
def test_the_verbs_lead_from_clips_to_a_report(encoder, tmp_path):
    pytest.importorskip("sklearn")
    clips, out = tmp_path / "clips", tmp_path / "probe"
    made = ["demo-data", "--out", str(clips), "--train-clips", "48", "--test-clips", "16"]
    assert main(made) == 0
    lost = sorted((clips / "test").rglob("*.mp4"))[0]
    lost.write_bytes(b"")  # a download that broke off
    packing = ["probe-data", "folders:", "--root", str(clips), "--out", str(out)]
    packing += ["--inputs", ",".join(INPUTS), "--size", "112", "--workers", "0", "--allow-missing"]
    assert main(packing) in (0, 1)
    runs = []
    for name in INPUTS:
        runs.append(str(tmp_path / "runs" / name))
        settings = f"runlocal,data={out},encoder={encoder},input={name}"
        overrides = ["--config.epochs=1", "--config.label=tiny"]
        command = [sys.executable, "-m", "codecvit", "probe", f"--workdir={runs[-1]}"]
        command += [f"--config={CONFIG}:{settings}", *overrides]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert main(["probe-report", *runs, "--out", str(tmp_path / "report")]) == 0
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {cell["input"] for cell in found["cells"]} == set(INPUTS)
    for cell in found["cells"]:
        # 112 pixels in patches of 14: a frame is 64 tokens.
        assert cell["tokens"] == 128 and cell["encoder"] == "tiny"
        assert cell["test_examples"] == 16 and cell["test_missing"] == 1
    (difference,) = found["differences"]
    assert (difference["codec"], difference["frames"]) == ("codec128", "frames2")
