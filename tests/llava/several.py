"""A tiny model of two encoders: ours on patches, SigLIP on frames; and visuals for it."""

from __future__ import annotations

import numpy as np
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from codecvit.llava import LlavaForConditionalGeneration
from codecvit.llava.data.collate import collate
from codecvit.llava.data.examples import Example
from codecvit.llava.data.frame_visuals import frames_visual
from codecvit.llava.data.visuals import Visual
from codecvit.llava.encoders.frames import Frames
from codecvit.llava.model.token_counts import num_visual_tokens

from .conftest import PATCH, language_config

SIZE, COUNT = 16, 4  # of SigLIP's frames: their side and their number
FUSED = {"projector": "3davg+mlp2x_gelu", "pool": (2, 2, 2)}
CONTEXT = 512


def siglip_config(**changes):
    fields = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, **changes}
    return SiglipVisionConfig(num_attention_heads=2, image_size=SIZE, patch_size=8, **fields)


def write_siglip(folder, seed=3):
    """A folder of SigLIP's vision tower with weights that make pixels matter."""
    torch.manual_seed(seed)
    model = SiglipVisionModel(siglip_config())
    for name, parameter in model.named_parameters():
        if "proj" in name or "patch_embedding.weight" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def sources(encoder_dir, siglip_dir, frames=COUNT):
    return [f"video=onevision_encoder:{encoder_dir}", f"image=siglip:{siglip_dir}@{frames}"]


def make_several(encoders, seed=0, **fields):
    """A model in eval mode; its fusion tells encoders apart, where it has weights."""
    torch.manual_seed(seed)
    fields = {"template": "chatml", **FUSED, **fields}
    model = LlavaForConditionalGeneration.from_encoders(encoders, language_config(), **fields)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, parameter in sorted(model.projector.fusion.named_parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


def made_visual(seed, steps=4, keep=10, patches=True, frames=True):
    """A clip whose first frame is whole, or with `steps` = 1 an image; 4 x 4 patches a frame."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (COUNT if steps > 1 else 1, SIZE, SIZE, 3), np.uint8)
    shown = Frames(pixels) if frames else None
    if not patches:
        return frames_visual(shown)
    h, w = np.divmod(np.arange(16, dtype=np.int32), 4)
    whole = np.stack([np.zeros_like(h), h, w], axis=1)
    slots = np.round(np.arange(1, steps) * 63 / max(steps - 1, 1)).astype(np.int32)
    later = np.array([(t, y, x) for t in slots for y in range(4) for x in range(4)], np.int32)
    if len(later):
        whole = np.concatenate([whole, later[np.sort(rng.permutation(len(later))[:keep])]])
    levels = rng.integers(0, 256, (len(whole), PATCH, PATCH, 3), np.uint8)
    return Visual(levels, whole, np.zeros(len(whole), np.int32), None, (4, 4), shown)


def as_example(config, *items):
    """An example of ids (int) and visuals, with as many -200 as the configuration says."""
    ids, visuals = [], []
    for item in items:
        if isinstance(item, int):
            ids.append(item)
            continue
        count = 0 if item.frames is None else len(item.frames)
        ids += [-200] * num_visual_tokens(config, item.positions, item.grid, count)
        visuals.append(item)
    ids = np.array(ids, np.int64)
    return Example(ids, np.where(ids < 0, -100, ids), visuals)


IMAGE, VIDEO = made_visual(0, steps=1), made_visual(1)
ROWS = [[5, IMAGE, 7, 8], [10, 11], [12, VIDEO, 13, made_visual(2), 14]]


def fields_of(form):
    """The fields of a form of fusion, with a small query where it has one."""
    return {"fusion_query": 8, **form} if form.get("fusion") == "mha_compat" else form


def batch_of(model, rows=ROWS, left=False, labels=False):
    """Rows as the arguments of `forward`; a row is a list of ids and visuals."""
    batch = collate([as_example(model.config, *row) for row in rows], 256, left)
    if not labels:
        del batch["labels"]
    return batch
