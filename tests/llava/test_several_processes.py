"""Two processes train a model of several encoders, towers and all, as one process does."""

from __future__ import annotations

import pytest
import torch

from codecvit.llava.training.checkpoints import latest_checkpoint, read_trained
from codecvit.llava.training.train import train

from .made import turns, write_rows
from .runs import metrics_of, options, tiny_config, write_data
from .test_resume import FSDP2, finish, launch


@pytest.mark.slow
@pytest.mark.parametrize(
    "before", ["", FSDP2.replace("Layer,", "Layer,SiglipEncoderLayer,")], ids=["ddp", "fsdp2"]
)
def test_two_processes_take_the_steps_of_one(before, encoders, lm_dir, tmp_path):
    """Rows of text beside images: one process may see nothing, and must not be waited for."""
    data = write_data(tmp_path / "data", images=6, texts=6)
    rows = [{"id": f"more{i}", "conversations": turns("Say", "a b c")} for i in range(4)]
    with data.open("a") as file:
        file.write(write_rows(tmp_path / "more.jsonl", rows).read_text())
    fields = {
        "model__encoders": tuple(encoders),
        "model__language_model": str(lm_dir),
        "model__projector": "3davg+mlp2x_gelu",
        "model__pool": (2, 2, 2),
        "model__fusion_bias": True,
        "data__recipe": str(data),
        "optim__lr": 1e-2,
        "optim__vision_tower_lr": 1e-3,
        "optim__eps": 1e-3,
        "steps": 5,
        "batch_size": 4,
        "micro_batch_size": 1,
    }
    told = finish(launch(options("sft", **fields), tmp_path / "two", before))
    assert f"2 process(es) on cpu ({'FSDP' if before else 'MULTI_CPU'})" in told
    train(tiny_config("sft", **fields), tmp_path / "one")
    one, two = (read_trained(latest_checkpoint(tmp_path / run)) for run in ("one", "two"))
    assert one.keys() == two.keys()
    assert {"projector.fusion.vector", "projector.fusion.logits.image"} < one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-3, atol=1e-5, msg=name)
    for row, other in zip(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two"), strict=True):
        assert row == pytest.approx(other, rel=1e-3)
    assert any("train/fusion/image" in row for row in metrics_of(tmp_path / "one"))
