"""What a training step reaches in a model of several encoders, and what it keeps."""

import pytest
import torch

from codecvit.llava.model.fusion import FUSIONS

from .several import ROWS, batch_of, fields_of, made_visual, make_several


def gradients(model, rows):
    model.zero_grad()
    model(**batch_of(model, rows, labels=True)).loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_training_step_reaches_what_is_trained(fusion, encoders):
    """Projectors and fusion; of the towers what is read, and nothing if they are frozen."""
    model = make_several(encoders, **fields_of({"fusion": fusion})).train()
    used = {id(p) for p in model.vision_parameters()}
    names = {n for n, p in model.named_parameters() if id(p) in used}
    found = gradients(model, ROWS)
    assert {n for n in found if n.startswith("vision_tower")} == names
    assert {n.split(".")[1] for n in names} == {"video", "image"}
    model.vision_tower.requires_grad_(False)
    found = gradients(model, ROWS)
    assert not any(n.startswith("vision_tower") for n in found)
    wanted = {n for n, _ in model.projector.named_parameters(prefix="projector")}
    assert {n for n in found if n.startswith("projector")} == wanted
    # The key's bias of equal scores would cancel out; nothing of that kind is here.
    left = {n for n in wanted if not found[n].any()}
    chosen = "projector.encoders.image." if fusion == "first" else "nothing"
    assert all(n.startswith(chosen) for n in left) and bool(left) == (fusion == "first")


@pytest.mark.parametrize(
    "rows",
    [[[1, 2, 3]], [[1, made_visual(1, frames=False), 2]], [[1, made_visual(1, patches=False), 2]]],
    ids=["text", "patches-alone", "frames-alone"],
)
def test_what_a_batch_does_not_show_has_zero_gradients(rows, encoders):
    """Not none: processes that share gradients would wait for each other."""
    model = make_several(encoders).train()
    everything = gradients(model, ROWS).keys()
    found = gradients(model, rows)
    assert found.keys() == everything


def test_frozen_encoders_keep_no_activations(encoders):
    """Though transformers makes embeddings require gradients when checkpointing is on."""
    model = make_several(encoders).train()
    model.vision_tower.requires_grad_(False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = batch_of(model)
    names = ("patches", "positions", "lengths", "grids", "frames", "frame_counts")
    for seen in model.encode_visuals(**{n: batch[n] for n in names}).values():
        assert not seen.features.requires_grad


def test_gradient_checkpointing_changes_no_gradient(encoders):
    model = make_several(encoders).train()
    expected = {n: g.clone() for n, g in gradients(model, ROWS).items()}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = gradients(model, ROWS)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
