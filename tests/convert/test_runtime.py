"""What users do with the PyTorch model: other dtypes, compilation, placement, mixed precision."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoModel

import codecvit
from codecvit.convert import torch_input
from codecvit.convert.export import export
from codecvit.models import Encoder, ViTConfig
from codecvit.models.config import SIZES


def picture(path):
    """A drawing: a sky, a hill, a sun, a house."""
    sky = np.linspace((40, 90, 200), (220, 230, 250), 240)[:, None].repeat(320, 1)
    image = Image.fromarray(sky.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((230, 20, 290, 80), fill=(250, 220, 60))
    draw.ellipse((-80, 130, 260, 400), fill=(50, 130, 40))
    draw.rectangle((180, 120, 270, 200), fill=(150, 80, 60))
    draw.polygon([(170, 120), (225, 80), (280, 120)], fill=(90, 40, 40))
    image.save(path)
    return path


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    path = picture(tmp_path_factory.mktemp("drawing") / "drawing.png")
    return codecvit.pack_image(path, size=112, patch=14)


def run(model, **arguments):
    with torch.no_grad():
        return model(**arguments)


def cosine(a, b):
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    "size", [pytest.param(s, marks=pytest.mark.slow) if s == "H" else s for s in SIZES]
)
def test_half_precision_keeps_the_direction(size, drawing, make_params, torch_model):
    config = ViTConfig.from_variant(f"{size}/14", depth=2)
    params = make_params(config)
    ours = Encoder(config, params)(drawing).pooled
    for dtype in HALVES:
        model = torch_model(config, params).to(dtype)
        out = run(model, **torch_input(drawing))
        assert out.pooler_output.dtype == out.last_hidden_state.dtype == dtype
        assert cosine(out.pooler_output[0].float(), ours) > 0.999


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_on_a_real_clip(dtype, media, small, torch_model):
    sequence = codecvit.pack_video(media / "bikes_h264_640x272.mp4", budget=512)
    ours = Encoder(*small)(sequence).pooled
    for arguments in (torch_input(sequence), torch_input(sequence, packed=True)):
        out = run(torch_model(*small).to(dtype), **arguments)
        assert cosine(out.pooler_output[0].float(), ours) > 0.999


def test_half_is_the_method_half(small, drawing, torch_model):
    model = torch_model(*small).half()
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert run(model, **torch_input(drawing)).pooler_output.isfinite().all()


def forms(make_sequence):
    """Arguments of each form: an image, a padded batch, a packed row."""
    sequences = [make_sequence(seed, length=length) for seed, length in ((1, 30), (2, 21))]
    return {
        "image": {"pixel_values": torch.randn(2, 3, 28, 42)},
        "padded": torch_input(sequences),
        "packed": torch_input(sequences, packed=True),
    }


FORMS = ("image", "padded", "packed")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("form", FORMS)
def test_autocast(small, make_sequence, torch_model, form, attention):
    arguments = forms(make_sequence)[form]
    model = torch_model(*small, attention=attention)
    expected = run(model, **arguments).pooler_output
    with torch.autocast("cpu", torch.bfloat16):
        out = run(model, **arguments).pooler_output
    assert cosine(out.float(), expected) > 0.999
    assert not torch.equal(out.float(), expected)


@pytest.mark.parametrize("form", FORMS)
def test_compiled_without_code_generation(small, make_sequence, torch_model, form):
    """Traced as one graph; of a packed row the lengths are read, which splits it."""
    require_compiled(torch_model(*small), forms(make_sequence)[form], form, "aot_eager")


@pytest.mark.slow  # compiles kernels in C++
@pytest.mark.parametrize("form", FORMS)
def test_compiled(small, make_sequence, torch_model, form):
    require_compiled(torch_model(*small), forms(make_sequence)[form], form, "inductor")


def require_compiled(model, arguments, form, backend):
    expected = run(model, **arguments)
    compiled = torch.compile(model, backend=backend, fullgraph=form != "packed")
    out = run(compiled, **arguments)
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(out[name], expected[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_checkpointing_of_every_form(small, make_sequence, torch_model, form):
    arguments = forms(make_sequence)[form]
    model = torch_model(*small).train()

    def gradients():
        model.zero_grad()
        model(**arguments).pooler_output.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    plain = gradients()
    for options in ({"use_reentrant": False}, {"use_reentrant": True}):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        for name, grad in gradients().items():
            assert (grad - plain[name]).abs().max() <= 1e-5 * plain[name].abs().max(), name


@pytest.mark.parametrize("place", ["auto", "cpu and disk"])
def test_device_map(small, make_sequence, tmp_path, place):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    folder = export(*small[::-1], tmp_path / place.replace(" ", "_"))
    options = {"device_map": "auto"}
    if place != "auto":
        parts = ("embeddings", "layernorm_pre", "encoder.layers.0", "layernorm_post")
        devices = dict.fromkeys(parts, "cpu") | {"encoder.layers.1": "disk", "head": "disk"}
        options = {"device_map": devices, "offload_folder": str(tmp_path / "offload")}
    placed = AutoModel.from_pretrained(folder, trust_remote_code=True, **options).eval()
    if place != "auto":
        assert next(placed.head.parameters()).device.type == "meta"  # on disk until it is needed
    plain = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    for arguments in forms(make_sequence).values():
        out, expected = run(placed, **arguments), run(plain, **arguments)
        torch.testing.assert_close(out.pooler_output, expected.pooler_output)


def test_saved_again_in_bfloat16(small, make_sequence, tmp_path):
    folder = export(*small[::-1], tmp_path / "first", dtype="bfloat16")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
    model.config.rope_theta = 500.0
    model.save_pretrained(tmp_path / "second")
    again = AutoModel.from_pretrained(tmp_path / "second", trust_remote_code=True, dtype="auto")
    assert again.dtype == torch.bfloat16
    for arguments in forms(make_sequence).values():
        out = run(again.eval(), **arguments)
        assert torch.equal(out.pooler_output, run(model, **arguments).pooler_output)
    encoder = codecvit.load(tmp_path / "second")
    assert encoder.config.rope_theta == 500.0
