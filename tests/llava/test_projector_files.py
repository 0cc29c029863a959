"""Projectors of several encoders from files of one each."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from codecvit.llava.training.projector_files import load_projectors

from .several import make_several, write_siglip

PLAIN = {"projector": "mlp2x_gelu"}


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return write_siglip(tmp_path_factory.mktemp("tower") / "siglip")


def alone(siglip, seed, name="one"):
    """The projector of a model with one encoder."""
    return make_several([f"{name}=siglip:{siglip}@4"], seed, **PLAIN).projector


@pytest.fixture
def both(siglip):
    sources = [f"{name}=siglip:{siglip}@4" for name in ("image", "video")]
    return make_several(sources, 9, **PLAIN, fusion="dual_stream", pool_level=2).projector


def tensors(module, prefix=""):
    return {prefix + name: p.detach().clone() for name, p in module.named_parameters()}


def equal(module, other):
    found, wanted = tensors(module), tensors(other)
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in found)


FORMS = {
    "of a run": lambda p: tensors(p, "projector."),
    "of its one encoder": lambda p: tensors(p.encoders["one"]),
    "LLaVA's": lambda p: {
        f"model.mm_projector.{n.removeprefix('mlp.')}": x
        for n, x in tensors(p.encoders["one"]).items()
    },
    "VideoGPT+'s": lambda p: {
        f"model.image_mm_projector.{n.removeprefix('mlp.')}": x
        for n, x in tensors(p.encoders["one"]).items()
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_each_encoder_gets_the_projector_of_its_file(siglip, both, tmp_path, form):
    image, video = alone(siglip, 1), alone(siglip, 2)
    save_file(FORMS[form](image), tmp_path / "image.safetensors")
    torch.save(FORMS[form](video), tmp_path / "video.bin")
    load_projectors(both, f"image={tmp_path}/image.safetensors,video={tmp_path}/video.bin")
    assert equal(both.encoders["image"], image.encoders["one"])
    assert equal(both.encoders["video"], video.encoders["one"])
    assert not equal(both.encoders["video"], both.encoders["image"])


def test_an_encoder_that_is_not_named_keeps_its_own(siglip, both, tmp_path):
    before = tensors(both.encoders["video"])
    image = alone(siglip, 1)
    save_file(FORMS["of a run"](image), tmp_path / "image.safetensors")
    load_projectors(both, f"image={tmp_path}/image.safetensors")
    assert equal(both.encoders["image"], image.encoders["one"])
    assert all(torch.equal(x, before[n]) for n, x in tensors(both.encoders["video"]).items())


def test_a_run_means_its_newest_checkpoint(siglip, both, tmp_path):
    for step in (3, 12):
        folder = tmp_path / "run" / "checkpoints" / f"{step:08}"
        folder.mkdir(parents=True)
        trained = tensors(alone(siglip, step), "projector.")
        save_file({**trained, "language_model.x": torch.zeros(1)}, folder / "trained.safetensors")
        (folder / "state.json").write_text(json.dumps({"step": step}))
    load_projectors(both, f"video={tmp_path}/run")
    assert equal(both.encoders["video"], alone(siglip, 12).encoders["one"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is no run with a checkpoint"):
        load_projectors(both, f"video={tmp_path}/empty")


def test_a_file_of_all_fills_all(siglip, both, tmp_path):
    sources = [f"{name}=siglip:{siglip}@4" for name in ("video", "image")]
    other = make_several(sources, 4, **PLAIN, fusion="dual_stream", pool_level=2).projector
    save_file(tensors(other, "projector."), tmp_path / "all.safetensors")
    load_projectors(both, str(tmp_path / "all.safetensors"))
    assert equal(both, other)
    with pytest.raises(ValueError, match="has the projectors of image, video: name a file"):
        load_projectors(both, f"image={tmp_path}/all.safetensors")


def test_names_that_do_not_fit(siglip, both, tmp_path):
    file = tmp_path / "one.safetensors"
    save_file(FORMS["of a run"](alone(siglip, 1)), file)
    for given in (f"sound={file}", f"image={file},image={file}", f"image={file},{file}", "image="):
        with pytest.raises(ValueError, match="with encoders of the model: image, video"):
            load_projectors(both, given)
    with pytest.raises(ValueError, match="it has one, without a name"):
        load_projectors(both.encoders["image"], f"image={file}")
    with pytest.raises(ValueError, match="does not exist"):
        load_projectors(both, "image=gone.safetensors")
    with pytest.raises(ValueError, match=r"mlp\.2\.bias"):
        cut = {n: x for n, x in FORMS["of a run"](alone(siglip, 1)).items() if "2.bias" not in n}
        save_file(cut, file)
        load_projectors(both, f"image={file}")
