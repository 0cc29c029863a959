"""Checkpoints shaped as MERV's, tiny and drawn on the spot, and what they have to compute.

The modules here are put together from torch's and transformers' own parts, after the published
description, and share nothing with this package but LanguageBind's tower.
"""

from __future__ import annotations

import json

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    VivitConfig,
    VivitModel,
)

from codecvit.llava.encoders.languagebind import LanguageBindVideoConfig, LanguageBindVideoModel
from codecvit.llava.encoders.registry import spec_of

from .conftest import language_config, make_tokenizer

PATCH, SIZE, CELLS, QUERY = 56, 224, 2, 24
FRAMES = {"languagebind": 4, "dinov2": 4, "vivit": 8, "siglip": 4}
IDS = {
    "languagebind": "languagebind-video-noclass",
    "dinov2": "dinov2-video-all-tokens",
    "vivit": "vivit-google-b-all-no-cls-16frames",
    "siglip": "siglip-vit-b16-224px-all-no-cls",
}
MEANS = {
    "languagebind": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "vivit": ((0.5,) * 3, (0.5,) * 3),
    "siglip": ((0.5,) * 3, (0.5,) * 3),
}
_SIZES = {"num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIZE, "patch_size": PATCH}


def draw_towers():
    """Name -> tower, each of another width but two."""
    torch.manual_seed(0)
    small = {**_SIZES, "image_size": SIZE // 2}  # its position table is stretched
    return {
        "languagebind": LanguageBindVideoModel(
            LanguageBindVideoConfig(hidden_size=64, intermediate_size=64, num_frames=2, **_SIZES)
        ),
        "dinov2": Dinov2WithRegistersModel(Dinov2WithRegistersConfig(hidden_size=48, **small)),
        "vivit": VivitModel(
            VivitConfig(
                hidden_size=32,
                intermediate_size=64,
                num_frames=8,
                tubelet_size=[2, PATCH, PATCH],
                **{k: v for k, v in _SIZES.items() if k != "patch_size"},
            )
        ),
        "siglip": SiglipVisionModel(
            SiglipVisionConfig(hidden_size=32, intermediate_size=64, **_SIZES)
        ),
    }


def grids(name, tower, pixels_FSS3):
    """What MERV reads of a tower: [D, steps, rows, columns] of all frames of a clip."""
    mean, std = (torch.tensor(x) for x in MEANS[name])
    x = (pixels_FSS3[:: 8 // FRAMES[name]].float() / 255 - mean) / std
    side = SIZE // PATCH
    if name == "languagebind":
        found = spec_of("languagebind_video").features(tower, x[None], -2)[0]
    elif name == "vivit":
        found = tower(x.movedim(-1, 1)[None]).last_hidden_state[0, 1:]
    else:
        hidden = tower(x.movedim(-1, 1), output_hidden_states=True).hidden_states[-2]
        found = hidden[:, 5 if name == "dinov2" else 0 :]
    return found.reshape(-1, side, side, found.shape[-1]).movedim(-1, 0)


class CrossAttention(nn.Module):
    """A block of V-JEPA's attentive pooler: 8 heads, MLP of ratio 4."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.xattn, self.mlp = nn.Module(), nn.Module()
        self.xattn.q, self.xattn.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.xattn.proj = nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, q, x):
        """[T, Q, D] and [T, N, D] -> [T, Q, D], step by step and head by head."""
        key, value = self.xattn.kv(self.norm1(x)).chunk(2, -1)
        query, size = self.xattn.q(q), q.shape[-1] // 8
        heads = []
        for h in range(8):
            part = slice(h * size, (h + 1) * size)
            scores = query[..., part] @ key[..., part].mT / size**0.5
            heads.append(scores.softmax(-1) @ value[..., part])
        q = q + self.xattn.proj(torch.cat(heads, -1))
        return q + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(q))))


class Merv(nn.Module):
    """Projectors, fusion and language model under MERV's names.

    Args:
      towers: in MERV's order.
      arch: what stands behind the pooling: "linear" or "gelu-mlp".
      pooling: "3davg", "3dconv", "attntv".
      fusion: "cross_attention_avg_lq", "concat_channel", "concat_channel_ln", "first", "concat".
      kind: of the language model.
    """

    def __init__(self, towers, arch, pooling, fusion, kind="llama", vocabulary=320):
        super().__init__()
        torch.manual_seed(1)
        self.towers, self.pooling, self.fusion, width = towers, pooling, fusion, 32
        self.projectors = nn.ModuleList()
        for tower in towers.values():
            inner, holder = tower.config.hidden_size, nn.Module()
            if pooling == "3dconv":
                conv = nn.Conv3d(inner, width, kernel_size=3, padding=1)
                holder.convolution_pooling, inner = nn.Sequential(conv), width
            if pooling == "attntv":
                holder.query_tokens = nn.Parameter(torch.randn(1, CELLS**2, inner))
                holder.cross_attn = CrossAttention(inner)
            holder.projector = nn.Module()
            last = nn.Linear(inner, width)
            if arch == "gelu-mlp":
                last = nn.Sequential(last, nn.GELU(), nn.Linear(width, width))
            holder.projector.projector = last
            self.projectors.append(holder)
        self.feature_fusion = nn.Module()
        many = len(towers) * width
        if fusion == "cross_attention_avg_lq":
            self.feature_fusion.attention = nn.MultiheadAttention(
                QUERY, 1, batch_first=True, kdim=width, vdim=width
            )
            for parameter in self.feature_fusion.attention.parameters():
                nn.init.normal_(parameter, std=0.5)  # so that the weights are far from equal
            self.feature_fusion.Q = nn.Parameter(torch.randn(1, QUERY))
        elif fusion == "concat_channel":
            self.feature_fusion.projector = nn.Linear(many, width)
        elif fusion == "concat_channel_ln":
            holder = nn.Module()
            holder.projector = nn.Linear(many, width)
            norm = nn.LayerNorm(many)
            nn.init.normal_(norm.weight)
            self.feature_fusion = nn.Sequential(norm, holder)
        self.llm = AutoModelForCausalLM.from_config(language_config(kind, vocab_size=vocabulary))
        self.eval()

    @torch.no_grad()
    def visual_tokens(self, pixels_FSS3):
        """[T, C] and, of the cross-attention, the weights [E]."""
        each = []
        for (name, tower), holder in zip(self.towers.items(), self.projectors, strict=True):
            x = grids(name, tower.eval(), pixels_FSS3)
            steps = x.shape[1]
            if self.pooling == "3dconv":
                x = holder.convolution_pooling(x[None])[0]
            if self.pooling == "attntv":
                x = x.movedim(0, -1).flatten(1, 2)
                x = holder.cross_attn(holder.query_tokens.expand(steps, -1, -1), x).flatten(0, 1)
            else:
                x = nn.functional.adaptive_avg_pool3d(x, (steps, CELLS, CELLS)).flatten(1).T
            each.append(holder.projector.projector(x))
        if self.fusion == "first":
            return each[0], None
        if self.fusion == "concat":
            return torch.cat(each), None
        if self.fusion == "concat_channel":
            return self.feature_fusion.projector(torch.cat(each, -1)), None
        if self.fusion == "concat_channel_ln":
            norm, holder = self.feature_fusion
            return holder.projector(norm(torch.cat(each, -1))), None
        tokens = torch.stack(each)
        keys = tokens.mean(1)[None]
        weights = self.feature_fusion.attention(self.feature_fusion.Q[None], keys, keys)[1][0, 0]
        return (weights[:, None, None] * tokens).sum(0), weights

    @torch.no_grad()
    def logits(self, ids, pixels_FSS3):
        """Of `[BOS] + visual tokens + rest of the text`."""
        text = self.llm.get_input_embeddings()(torch.tensor([ids]))
        seen = self.visual_tokens(pixels_FSS3)[0][None]
        return self.llm(inputs_embeds=torch.cat([text[:, :1], seen, text[:, 1:]], 1)).logits[0]

    def save(self, folder, arch="no-align+3davg+linear", **changes):
        """As MERV does; towers as transformers does, beside it. Returns --encoder arguments."""
        (folder / "checkpoints").mkdir(parents=True)
        parts = ("projectors", "feature_fusion", "llm_backbone")
        state = {part: getattr(self, part).state_dict() for part in parts if part != "llm_backbone"}
        state["llm_backbone"] = {f"llm.{n}": t for n, t in self.llm.state_dict().items()}
        stored = {"model": state, "optimizer": {"state": {}}, "lr_scheduler": {}, "step": 3}
        torch.save(stored, folder / "checkpoints" / "latest-checkpoint.pt")
        names = list(self.towers)
        model = {
            "model_id": "tiny",
            "arch_specifier": arch,
            "feature_fusion": self.fusion,
            "video_backbone_ids": [IDS[name] for name in names],
            "llm_backbone_id": "llama2-7b-pure",
            "num_frames": [FRAMES[name] for name in names],
            "projector_token_length": CELLS**2,
            "visual_feature_length": 4 * CELLS**2,
            **changes,
        }
        (folder / "config.json").write_text(json.dumps({"model": model, "seed": 7}))
        return folder


def save_language_model(folder, kind="llama"):
    """Configuration and tokenizer alone; the checkpoint has the weights."""
    tokenizer = make_tokenizer("pure")
    tokenizer.bos_token = "<s>"
    tokenizer.pad_token = None
    language_config(kind, vocab_size=260).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
