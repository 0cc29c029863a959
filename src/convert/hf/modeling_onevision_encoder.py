"""The OneVision encoder in PyTorch: a ViT over patches of images, videos or codec selections.

Same parameters, inputs and outputs as the published onevision-encoder (arXiv 2602.08683,
github.com/EvolvingLMMs-Lab/OneVision-Encoder), so that code written for it runs unchanged. After a
change of this file, refresh MODELING_VERSION in configuration_onevision_encoder.py.

Shape suffixes: B batch, N embedded patches, S tokens in the transformer, D width, H heads, d width
of a head, 3 (t, h, w).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from .configuration_onevision_encoder import OneVisionEncoderConfig


def rotary_tables(
    positions_BS3: torch.Tensor, head_width: int, theta: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the 3-D rotary code, which gives t, h and w 4:6:6 of the frequencies.

    The frequencies are made here, from the configuration, and not kept in a buffer: a
    non-persistent buffer comes back uninitialised from `from_pretrained` of transformers 5 and
    loses digits under `.to(torch.bfloat16)`.

    Args:
      positions_BS3: integer (t, h, w) of each token.
      head_width: d, a multiple of 32.
      theta: base of the frequencies; axis with n of them has theta^(-i/n), i = 0..n-1.
      dtype: of the result; the angles are float32 in any case.

    Returns:
      cos and sin, each [B, 1, S, d], the d/2 angles of a token twice in a row.
    """
    unit = head_width // 32
    angles = []
    for axis, count in enumerate((4 * unit, 6 * unit, 6 * unit)):
        frequencies = [theta ** (-i / count) for i in range(count)]
        frequencies = torch.tensor(frequencies, dtype=torch.float32, device=positions_BS3.device)
        angles.append(positions_BS3[..., axis, None].to(torch.float32) * frequencies)
    angles_BSd = torch.cat(angles + angles, dim=-1)[:, None]
    return angles_BSd.cos().to(dtype), angles_BSd.sin().to(dtype)


def rotate(x_BHSd: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Applies the rotary code: x*cos + R(x)*sin with R(x)[2i] = -x[2i+1], R(x)[2i+1] = x[2i].

    The tables repeat after d/2 channels while R pairs neighbours, so the two channels of a pair
    have different angles.
    That is how the published weights were trained; it must not be "corrected".
    """
    quarter_turn = torch.stack((-x_BHSd[..., 1::2], x_BHSd[..., ::2]), dim=-1).flatten(-2)
    return x_BHSd * cos + quarter_turn * sin


def eager_attention(
    module: nn.Module,
    query_BHSd: torch.Tensor,
    key_BHSd: torch.Tensor,
    value_BHSd: torch.Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain tensor operations, called as the attention functions of transformers are.

    Returns:
      The mixed values [B, S, H, d] and the attention weights [B, H, S, S].
    """
    scores = (query_BHSd @ key_BHSd.transpose(-1, -2)) * scaling
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query_BHSd.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value_BHSd).transpose(1, 2), weights


class _MultiHead(nn.Module):
    """What both attention layers share: heads, scale and the choice of implementation.

    The name matters: finding "class ...Attention(nn.Module)" in this file, transformers would
    expect its own idiom below it and refuse `set_attn_implementation` otherwise.
    """

    is_causal = False  # read by the attention functions of transformers

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.head_width = config.hidden_size // config.num_attention_heads

    def split_heads(self, x_BSD: torch.Tensor) -> torch.Tensor:
        return x_BSD.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def attend(
        self, query_BHSd: torch.Tensor, key_BHSd: torch.Tensor, value_BHSd: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        name = self.config._attn_implementation
        function: Callable = eager_attention if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
        mixed_BSHd, weights = function(
            self,
            query_BHSd,
            key_BHSd,
            value_BHSd,
            None,
            scaling=self.head_width**-0.5,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )
        return mixed_BSHd.flatten(-2), weights


class OneVisionEncoderAttention(_MultiHead):
    """Self-attention of a block; queries and keys carry the rotary code."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, x_BSD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self.split_heads(self.q_proj(x_BSD))
        key = self.split_heads(self.k_proj(x_BSD))
        value = self.split_heads(self.v_proj(x_BSD))
        cos, sin = cos.to(query.dtype), sin.to(query.dtype)  # autocast may have changed it
        mixed, weights = self.attend(rotate(query, cos, sin), rotate(key, cos, sin), value)
        return self.out_proj(mixed), weights


class OneVisionEncoderMLP(nn.Module):
    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(x_BSD)))


class OneVisionEncoderLayer(GradientCheckpointingLayer):
    """A pre-norm transformer block."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = OneVisionEncoderAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = OneVisionEncoderMLP(config)

    def forward(
        self, x_BSD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        mixed, weights = self.self_attn(self.layer_norm1(x_BSD), cos, sin)
        x_BSD = x_BSD + mixed
        return x_BSD + self.mlp(self.layer_norm2(x_BSD)), weights


class _PoolingAttention(_MultiHead):
    """Cross-attention with the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # rows q | k | v
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query_B1D: torch.Tensor, x_BSD: torch.Tensor) -> torch.Tensor:
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        query, key, value = (
            self.split_heads(nn.functional.linear(source, weight, bias))
            for source, weight, bias in zip((query_B1D, x_BSD, x_BSD), weights, biases, strict=True)
        )
        return self.out_proj(self.attend(query, key, value)[0])


class OneVisionEncoderPoolingHead(nn.Module):
    """A learned query attends to all tokens, then a residual MLP under an RMS norm (SigLIP 2)."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = _PoolingAttention(config)
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)  # whatever layer_norm_eps says
        self.mlp = OneVisionEncoderMLP(config)

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        pooled_B1D = self.attention(self.probe.expand(len(x_BSD), -1, -1), x_BSD)
        return (pooled_B1D + self.mlp(self.norm(pooled_B1D)))[:, 0]


class OneVisionEncoderEmbeddings(nn.Module):
    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
            bias=False,
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images or videos -> tokens [B, N, D], frame by frame in raster order."""
        frames = pixel_values.to(self.patch_embedding.weight.dtype)
        if frames.ndim == 5:
            frames = frames.transpose(1, 2).flatten(0, 1)
        x_FDhw = self.patch_embedding(frames)
        x_FND = x_FDhw.flatten(2).transpose(1, 2)
        return x_FND.reshape(len(pixel_values), -1, x_FND.shape[-1])


class OneVisionEncoderTransformer(nn.Module):
    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            OneVisionEncoderLayer(config) for _ in range(config.num_hidden_layers)
        )


class OneVisionEncoderPreTrainedModel(PreTrainedModel):
    config_class = OneVisionEncoderConfig
    base_model_prefix = "onevision_encoder"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["OneVisionEncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            nn.init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                nn.init.zeros_(module.bias)
        elif isinstance(module, _PoolingAttention):
            nn.init.xavier_uniform_(module.in_proj_weight)
            nn.init.zeros_(module.in_proj_bias)
        elif isinstance(module, OneVisionEncoderPoolingHead):
            nn.init.normal_(module.probe)


class OneVisionEncoderModel(OneVisionEncoderPreTrainedModel):
    """Encoder of images, videos and selected patches of videos."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__(config)
        self.embeddings = OneVisionEncoderEmbeddings(config)
        self.layernorm_pre = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = OneVisionEncoderTransformer(config)
        self.layernorm_post = None
        self.head = None
        if config.use_head:
            self.layernorm_post = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.head = OneVisionEncoderPoolingHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    def forward(
        self,
        pixel_values: torch.Tensor,
        visible_indices: torch.Tensor | None = None,
        patch_positions: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[torch.Tensor, ...]:
        """Encodes a batch.

        Args:
          pixel_values: normalised pixels, an image [B, C, height, width] or a video
            [B, C, T, height, width]. Selected patches may come tiled in raster order as the frames
            of a shorter video, or as one image.
          visible_indices: integers [B, S], index t*h*w + row*w + column of each token on the grid
            of frames of h x w patches. With S = N they only say where the (tiled) patches lie; with
            S < N these S of the N patches are kept, after `layernorm_pre`.
          patch_positions: integers [B, S, 3] or [S, 3], (t, h, w) of each token; they take the
            place of the positions that follow from `pixel_values` and `visible_indices`.
          output_attentions: also return the attention weights of each block (eager attention only).
          output_hidden_states: also return the tokens before each block and after the last one.
          return_dict: False for a plain tuple of what is not None.

        Returns:
          `last_hidden_state` [B, S, D] after `layernorm_post`; `pooler_output` [B, D];
          `hidden_states`, one more than blocks, the first after `layernorm_pre`, the last before
          `layernorm_post`; `attentions` [B, H, S, S] per block.

        Raises:
          ValueError: a shape does not fit, or the attention implementation keeps no weights.
        """
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if return_dict is None:
            return_dict = config.return_dict
        if output_attentions and config._attn_implementation != "eager":
            raise ValueError(
                "output_attentions needs the eager attention, not "
                f'{config._attn_implementation!r}: load the model with attn_implementation="eager"'
            )
        self._check_pixels(pixel_values)

        x_BND = self.layernorm_pre(self.embeddings(pixel_values))
        positions_BS3 = self._positions(pixel_values, visible_indices, patch_positions)
        if visible_indices is not None and visible_indices.shape[1] != x_BND.shape[1]:
            index = visible_indices[..., None].expand(-1, -1, x_BND.shape[-1])
            x_BSD = x_BND.gather(1, index)
        else:
            x_BSD = x_BND
        if positions_BS3.shape[1] != x_BSD.shape[1]:
            raise ValueError(
                f"patch_positions has {positions_BS3.shape[1]} rows for {x_BSD.shape[1]} tokens: "
                "give one per token"
            )
        head_width = config.hidden_size // config.num_attention_heads
        cos, sin = rotary_tables(positions_BS3, head_width, config.rope_theta, x_BSD.dtype)

        hidden_states, attentions = [], []
        if output_hidden_states:
            hidden_states.append(x_BSD)
        for layer in self.encoder.layers:
            x_BSD, weights = layer(x_BSD, cos, sin)
            if output_hidden_states:
                hidden_states.append(x_BSD)
            if output_attentions:
                attentions.append(weights)
        if self.layernorm_post is not None:
            x_BSD = self.layernorm_post(x_BSD)
        output = BaseModelOutputWithPooling(
            last_hidden_state=x_BSD,
            pooler_output=self.head(x_BSD) if self.head is not None else None,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()

    def _check_pixels(self, pixel_values: torch.Tensor) -> None:
        shape, patch = list(pixel_values.shape), self.config.patch_size
        if len(shape) not in (4, 5) or shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must be [B, {self.config.num_channels}, height, width] or "
                f"[B, {self.config.num_channels}, T, height, width], got {shape}"
            )
        if shape[-2] % patch or shape[-1] % patch:
            raise ValueError(
                f"pixel_values of {shape[-2]} x {shape[-1]} pixels must be a multiple of the "
                f"patch side {patch}"
            )

    def _positions(
        self,
        pixel_values: torch.Tensor,
        visible_indices: torch.Tensor | None,
        patch_positions: torch.Tensor | None,
    ) -> torch.Tensor:
        """Positions [B or 1, S, 3] of the tokens."""
        if patch_positions is not None:
            shape = list(patch_positions.shape)
            if len(shape) not in (2, 3) or shape[-1] != 3:
                raise ValueError(f"patch_positions must be [B, S, 3] or [S, 3], got {shape}")
            positions = patch_positions.to(pixel_values.device)
            return positions if positions.ndim == 3 else positions[None]
        rows = pixel_values.shape[-2] // self.config.patch_size
        columns = pixel_values.shape[-1] // self.config.patch_size
        index = visible_indices
        if index is None:
            frames = pixel_values.shape[2] if pixel_values.ndim == 5 else 1
            slots = self.config.rope_temporal_size
            if slots is not None and frames > slots:
                raise ValueError(
                    f"pixel_values has {frames} frames but the time axis {slots} slots "
                    "(rope_temporal_size): sample fewer frames, or give patch_positions"
                )
            index = torch.arange(frames * rows * columns, device=pixel_values.device)[None]
        t = index.div(rows * columns, rounding_mode="floor")
        h = index.remainder(rows * columns).div(columns, rounding_mode="floor")
        return torch.stack((t, h, index.remainder(columns)), dim=-1)
