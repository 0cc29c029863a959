"""The OpenVision CLIP model (arXiv 2505.04601) in PyTorch, with the tensor names of OpenCLIP.

An image tower (a ViT with fixed sine-cosine positions, mean over the patches, norm after it) and a
text tower (bidirectional, read at its last token). After a change of this file, refresh
MODELING_VERSION in configuration_openvision_clip.py.

Shape suffixes: B batch, N image patches, T text tokens, S tokens of either, D width of a tower,
H heads, d width of a head, E common embedding.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_openvision_clip import OpenVisionCLIPConfig


def sincos_positions(rows: int, columns: int, width: int, device: torch.device) -> torch.Tensor:
    """The fixed position code of a grid of patches in raster order (MoCo v3, arXiv 2104.02057).

    It is made here and not kept with the weights: any resolution has its own.

    Args:
      rows, columns: of the grid.
      width: D, a multiple of 4; each quarter has the frequencies 10000^(-i/(D/4-1)).
      device: of the result.

    Returns:
      float32 [rows*columns, D]: sines and cosines of the column, then of the row.
    """
    quarter = width // 4
    exponents = torch.arange(quarter, device=device, dtype=torch.float32) / max(quarter - 1, 1)
    frequencies = torch.exp(-math.log(10000.0) * exponents)
    h, w = torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
    )
    across = w.reshape(-1, 1) * frequencies
    down = h.reshape(-1, 1) * frequencies
    return torch.cat([across.sin(), across.cos(), down.sin(), down.cos()], dim=1)


class OpenVisionSelfAttention(nn.Module):
    """Full self-attention, with the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # rows q | k | v
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        qkv = nn.functional.linear(x_BSD, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (
            piece.unflatten(-1, (self.heads, -1)).transpose(1, 2) for piece in qkv.chunk(3, dim=-1)
        )
        mixed_BHSd = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed_BHSd.transpose(1, 2).flatten(2))


class OpenVisionMLP(nn.Module):
    def __init__(self, width: int, mlp_dim: int, approximate: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, mlp_dim)
        self.c_proj = nn.Linear(mlp_dim, width)
        self.approximate = approximate

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.gelu(self.c_fc(x_BSD), approximate=self.approximate)
        return self.c_proj(hidden)


class OpenVisionBlock(GradientCheckpointingLayer):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_dim: int, eps: float, approximate: str) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.attn = OpenVisionSelfAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.mlp = OpenVisionMLP(width, mlp_dim, approximate)

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        x_BSD = x_BSD + self.attn(self.ln_1(x_BSD))
        return x_BSD + self.mlp(self.ln_2(x_BSD))


class OpenVisionTransformer(nn.Module):
    """Blocks one after the other.

    Args:
      approximate: of GELU, "none" (exact) in the image tower, "tanh" in the text tower.
    """

    def __init__(
        self, width: int, layers: int, heads: int, mlp_dim: int, eps: float, approximate: str
    ) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            OpenVisionBlock(width, heads, mlp_dim, eps, approximate) for _ in range(layers)
        )

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        for block in self.resblocks:
            x_BSD = block(x_BSD)
        return x_BSD


class OpenVisionImageTower(nn.Module):
    """Pixels -> patch tokens and their normalised mean."""

    def __init__(self, config: OpenVisionCLIPConfig) -> None:
        super().__init__()
        width, patch = config.vision_width, config.patch_size
        self.patch_size = patch
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        # Takes part in every block and is left out of the mean.
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.transformer = OpenVisionTransformer(
            width,
            config.vision_layers,
            config.vision_heads,
            config.vision_mlp_dim,
            config.layer_norm_eps,
            "none",
        )
        self.ln_post = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.proj = None
        if config.text_layers:
            self.proj = nn.Parameter(torch.empty(width, config.embed_dim))

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised pixels [B, 3, height, width] -> pooled [B, D] and patch tokens [B, N, D].

        The tokens come before the norm, in raster order; `pooled` is the norm of their mean.
        """
        height, width = pixel_values.shape[-2:]
        if pixel_values.ndim != 4 or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"pixel_values {list(pixel_values.shape)} must be [B, 3, height, width] with "
                f"height and width multiples of the patch side {self.patch_size}"
            )
        grid_BDhw = self.conv1(pixel_values.to(self.conv1.weight.dtype))
        x_BND = grid_BDhw.flatten(2).transpose(1, 2)
        code_ND = sincos_positions(*grid_BDhw.shape[-2:], x_BND.shape[-1], x_BND.device)
        x_BND = x_BND + code_ND.to(x_BND.dtype)
        cls_B1D = self.class_embedding.to(x_BND.dtype).expand(len(x_BND), 1, -1)
        x_BND = self.transformer(torch.cat([cls_B1D, x_BND], dim=1))[:, 1:]
        return self.ln_post(x_BND.mean(dim=1)), x_BND


@dataclasses.dataclass
class OpenVisionCLIPOutput(ModelOutput):
    """What the model says about images and texts; None for what was not given.

    Attributes:
      logits_per_image: [images, texts], scaled cosine similarities.
      logits_per_text: the same, transposed.
      image_embeds: [B, E], unit rows.
      text_embeds: [B, E], unit rows.
      last_hidden_state: [B, N, D], patch tokens before the norm.
      pooler_output: [B, D], the norm of their mean, before the projection.
    """

    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None


class OpenVisionCLIPModel(PreTrainedModel):
    """Images and texts -> one embedding; without a text tower, images -> tokens."""

    config_class = OpenVisionCLIPConfig
    base_model_prefix = "openvision_clip"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["OpenVisionBlock"]
    _supports_sdpa = True

    def __init__(self, config: OpenVisionCLIPConfig) -> None:
        super().__init__(config)
        self.visual = OpenVisionImageTower(config)
        if config.text_layers:
            width = config.text_width
            self.token_embedding = nn.Embedding(config.vocab_size, width)
            self.positional_embedding = nn.Parameter(torch.empty(config.context_length, width))
            self.transformer = OpenVisionTransformer(
                width,
                config.text_layers,
                config.text_heads,
                config.text_mlp_dim,
                config.layer_norm_eps,
                "tanh",
            )
            self.ln_final = nn.LayerNorm(width, eps=config.layer_norm_eps)
            self.text_projection = nn.Parameter(torch.empty(width, config.embed_dim))
            self.logit_scale = nn.Parameter(torch.empty(()))
            if config.use_logit_bias:
                self.logit_bias = nn.Parameter(torch.empty(()))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, OpenVisionSelfAttention):
            nn.init.normal_(module.in_proj_weight, std=0.02)
            nn.init.zeros_(module.in_proj_bias)
        elif isinstance(module, OpenVisionImageTower):
            nn.init.normal_(module.class_embedding, std=1e-6)
            if module.proj is not None:
                nn.init.normal_(module.proj, std=0.02)
        elif isinstance(module, OpenVisionCLIPModel) and self.config.text_layers:
            nn.init.normal_(module.positional_embedding, std=0.01)
            nn.init.normal_(module.text_projection, std=0.02)
            nn.init.constant_(module.logit_scale, math.log(1 / 0.07))
            if self.config.use_logit_bias:
                nn.init.constant_(module.logit_bias, -10.0)

    def get_input_embeddings(self) -> nn.Module:
        return self.token_embedding if self.config.text_layers else self.visual.conv1

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised pixels [B, 3, height, width] -> embeddings [B, E], of any length."""
        self._require_text()
        return self.visual(pixel_values)[0] @ self.visual.proj

    def get_text_features(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [B, T], T the context length -> embeddings [B, E], of any length."""
        self._require_text()
        if input_ids.ndim != 2 or input_ids.shape[1] != self.config.context_length:
            raise ValueError(
                f"input_ids {list(input_ids.shape)} must be [B, {self.config.context_length}]: the "
                "last token of the context stands for the text, padding lies before it"
            )
        x_BTD = self.token_embedding(input_ids) + self.positional_embedding
        x_BTD = self.transformer(x_BTD)
        return self.ln_final(x_BTD[:, -1]) @ self.text_projection

    def prepare_texts(self, tokenizer: Any, texts: list[str]) -> torch.Tensor:
        """Texts -> input_ids int64 [B, T]: begin, tokens, end, padding, and the class token last.

        Args:
          tokenizer: of the model's folder, as AutoTokenizer opens it.
          texts: of any length; of a long one the last tokens are left out.
        """
        self._require_text()
        length = self.config.context_length
        ids_BT = torch.full((len(texts), length), tokenizer.pad_token_id, dtype=torch.long)
        for row, text in enumerate(texts):
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"][: length - 3]
            inside = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id]
            ids_BT[row, : len(inside)] = torch.tensor(inside)
        ids_BT[:, -1] = tokenizer.cls_token_id
        return ids_BT.to(self.device)

    def forward(
        self, input_ids: torch.Tensor | None = None, pixel_values: torch.Tensor | None = None
    ) -> OpenVisionCLIPOutput:
        """Embeds images, texts, or both and compares them.

        Args:
          input_ids: int64 [B, T], T the context length.
          pixel_values: normalised pixels [B, 3, height, width].

        Raises:
          ValueError: neither is given, a shape does not fit, or there is no text tower.
        """
        if input_ids is None and pixel_values is None:
            raise ValueError("one of input_ids and pixel_values must be given")
        out = OpenVisionCLIPOutput()
        if pixel_values is not None:
            out["pooler_output"], out["last_hidden_state"] = self.visual(pixel_values)
            if self.visual.proj is not None:
                embedding = out.pooler_output @ self.visual.proj
                out["image_embeds"] = nn.functional.normalize(embedding, dim=-1)
        if input_ids is not None:
            out["text_embeds"] = nn.functional.normalize(self.get_text_features(input_ids), dim=-1)
        if input_ids is not None and pixel_values is not None:
            logits = self.logit_scale.exp() * out.image_embeds @ out.text_embeds.T
            if self.config.use_logit_bias:
                logits = logits + self.logit_bias
            out["logits_per_image"], out["logits_per_text"] = logits, logits.T
        return out

    def _require_text(self) -> None:
        if not self.config.text_layers:
            raise ValueError(
                "this model has an image tower alone (text_layers = 0): call it with pixel_values "
                "and take last_hidden_state or pooler_output"
            )
