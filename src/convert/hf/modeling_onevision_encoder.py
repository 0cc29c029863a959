"""The OneVision encoder in PyTorch: a ViT over patches of images, videos or codec selections.

Same parameters, inputs and outputs as the published onevision-encoder (arXiv 2602.08683,
github.com/EvolvingLMMs-Lab/OneVision-Encoder), so that code written for it runs unchanged. After a
change of this file, refresh MODELING_VERSION in configuration_onevision_encoder.py.

Shape suffixes: B batch, N embedded patches, S tokens in the transformer, n samples of a packed row,
D width, H heads, d width of a head, 3 (t, h, w).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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


def raster_positions(
    index: torch.Tensor, rows: int | torch.Tensor, columns: int | torch.Tensor
) -> torch.Tensor:
    """(t, h, w) [..., 3] of an index t*rows*columns + h*columns + w."""
    t = index.div(rows * columns, rounding_mode="floor")
    h = index.remainder(rows * columns).div(columns, rounding_mode="floor")
    return torch.stack((t, h, index.remainder(columns)), dim=-1)


class Layout(NamedTuple):
    """Which tokens belong together, as the attention implementation wants to hear it.

    Attributes:
      mask: True where a token may be attended to: [B, S] for flash attention, [B, 1, 1, S] for
        others; a BlockMask for flex attention.
      split: lengths of packed samples that are attended to one by one.
      options: further arguments, by which flash attention keeps packed samples apart in one call.
    """

    mask: Any = None
    split: list[int] | None = None
    options: dict[str, Any] = {}


def padded_layout(name: str, mask_BS: torch.Tensor) -> Layout:
    """The layout of rows in which `mask_BS` says what is a token and what padding."""
    if name == "flex_attention":
        return Layout(_block_mask(mask_BS.int()))
    return Layout(mask_BS if "flash" in name else mask_BS[:, None, None])


def packed_layout(name: str, ids_S: torch.Tensor, lengths: list[int]) -> Layout:
    """The layout of one row of samples of these lengths; `ids_S` numbers them token by token."""
    if name == "flex_attention":
        return Layout(_block_mask(ids_S[None]))
    if "flash" not in name:
        return Layout(split=lengths)
    ends = torch.tensor([0, *lengths], device=ids_S.device).cumsum(0, dtype=torch.int32)
    limits = {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    return Layout(options={"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, **limits})


def _block_mask(ids_BS: torch.Tensor) -> Any:
    """Tokens of equal id attend to each other; so does padding, as a row needs a score."""
    from torch.nn.attention.flex_attention import create_block_mask

    def same(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return ids_BS[b, q] == ids_BS[b, k]

    B, S = ids_BS.shape
    return create_block_mask(same, B, None, S, S, device=ids_BS.device)


def eager_attention(
    module: nn.Module,
    query_BHSd: torch.Tensor,
    key_BHSd: torch.Tensor,
    value_BHSd: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain tensor operations, called as the attention functions of transformers are.

    Returns:
      The mixed values [B, S, H, d] and the attention weights [B, H, S, S].
    """
    scores = (query_BHSd @ key_BHSd.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query_BHSd.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value_BHSd).transpose(1, 2), weights


class _Heads(nn.Module):
    """What both attention layers share.

    The name matters: finding "class ...Attention...(nn.Module)" in this file, transformers would
    expect its own idiom below it and refuse `set_attn_implementation` otherwise.
    """

    is_causal = False  # read by the attention functions of transformers

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.head_width = config.hidden_size // config.num_attention_heads

    def split_heads(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, H, S, d]."""
        return x_BSD.unflatten(-1, (-1, self.head_width)).transpose(1, 2)


class OneVisionEncoderAttention(_Heads):
    """Self-attention of a block; queries and keys carry the rotary code."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, x_BSD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: Layout
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self.split_heads(self.q_proj(x_BSD))
        key = self.split_heads(self.k_proj(x_BSD))
        value = self.split_heads(self.v_proj(x_BSD))
        cos, sin = cos.to(query.dtype), sin.to(query.dtype)  # autocast may have changed it
        mixed, weights = self.attend(
            rotate(query, cos, sin), rotate(key, cos, sin), value, layout=layout
        )
        return self.out_proj(mixed.reshape(x_BSD.shape)), weights

    def attend(
        self, *query_key_value: torch.Tensor, layout: Layout
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, H, S, d] each -> [B, S, H, d], by the implementation that the configuration names."""
        name = self.config._attn_implementation
        function: Callable = eager_attention if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
        options = {
            "scaling": self.head_width**-0.5,
            "dropout": self.config.attention_dropout if self.training else 0.0,
            **layout.options,
        }
        if layout.split is None:
            return function(self, *query_key_value, layout.mask, **options)
        samples = zip(*(x.split(layout.split, dim=2) for x in query_key_value), strict=True)
        mixed = [function(self, *sample, None, **options)[0] for sample in samples]
        return torch.cat(mixed, dim=1), None


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
        self, x_BSD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: Layout
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        mixed, weights = self.self_attn(self.layer_norm1(x_BSD), cos, sin, layout)
        x_BSD = x_BSD + mixed
        return x_BSD + self.mlp(self.layer_norm2(x_BSD)), weights


def segment_mean(
    scores_SH: torch.Tensor, value_SHd: torch.Tensor, ids_S: torch.Tensor, n: int
) -> torch.Tensor:
    """Mean of each segment's values, weighted by a softmax over its own scores, float32 [n, H, d].

    Args:
      scores_SH: float32.
      value_SHd: one value per token and head.
      ids_S: segment 0..n-1 of each token.
      n: number of segments.
    """
    top_nH = scores_SH.new_full((n, scores_SH.shape[1]), float("-inf"))
    index_SH = ids_S[:, None].expand_as(scores_SH)
    top_nH = top_nH.scatter_reduce(0, index_SH, scores_SH.detach(), "amax")
    weights_SH = (scores_SH - top_nH[ids_S]).exp()
    total_nH = torch.zeros_like(top_nH).index_add(0, ids_S, weights_SH)
    mixed_SHd = weights_SH[..., None] * value_SHd
    sum_nHd = mixed_SHd.new_zeros((n, *mixed_SHd.shape[1:])).index_add(0, ids_S, mixed_SHd)
    return sum_nHd / total_nH[..., None]


class _PoolingAttention(_Heads):
    """Cross-attention of one query, with the parameter names of `torch.nn.MultiheadAttention`.

    In plain tensor operations: for a single query no implementation has anything to gain.
    """

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # rows q | k | v
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        probe_11D: torch.Tensor,
        x_BSD: torch.Tensor,
        mask_BS: torch.Tensor | None,
        ids_S: torch.Tensor | None,
        n: int,
    ) -> torch.Tensor:
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        query_1H1d, key_BHSd, value_BHSd = (
            self.split_heads(nn.functional.linear(source, weight, bias))
            for source, weight, bias in zip((probe_11D, x_BSD, x_BSD), weights, biases, strict=True)
        )
        scores_BHS1 = key_BHSd @ (query_1H1d * self.head_width**-0.5).transpose(-1, -2)
        scores_BHS = scores_BHS1[..., 0].float()
        if ids_S is not None:
            value_SHd = value_BHSd[0].transpose(0, 1)
            pooled_BHd = segment_mean(scores_BHS[0].T, value_SHd, ids_S, n).to(x_BSD.dtype)
        else:
            if mask_BS is not None:
                lowest = torch.finfo(scores_BHS.dtype).min
                scores_BHS = scores_BHS.masked_fill(~mask_BS[:, None], lowest)
            weights_BHS = scores_BHS.softmax(-1).to(value_BHSd.dtype)
            pooled_BHd = (weights_BHS[:, :, None] @ value_BHSd)[:, :, 0]
        return self.out_proj(pooled_BHd.flatten(1))


class OneVisionEncoderPoolingHead(nn.Module):
    """A learned query attends to all tokens, then a residual MLP under an RMS norm (SigLIP 2)."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = _PoolingAttention(config)
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)  # whatever layer_norm_eps says
        self.mlp = OneVisionEncoderMLP(config)

    def forward(
        self,
        x_BSD: torch.Tensor,
        mask_BS: torch.Tensor | None = None,
        ids_S: torch.Tensor | None = None,
        n: int = 0,
    ) -> torch.Tensor:
        """[B, S, D] -> [B, D], or of one packed row, whose n samples `ids_S` tells, [n, D]."""
        pooled_BD = self.attention(self.probe, x_BSD, mask_BS, ids_S, n)
        return pooled_BD + self.mlp(self.norm(pooled_BD))


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
        """Images or videos -> tokens [B, N, D], frame by frame in raster order.

        Flat patches [total, P*P*C], channels last, give [1, total, D].
        """
        weight_DCPP = self.patch_embedding.weight
        frames = pixel_values.to(weight_DCPP.dtype)
        if frames.ndim == 2:
            return nn.functional.linear(frames, weight_DCPP.permute(0, 2, 3, 1).flatten(1))[None]
        if frames.ndim == 5:
            frames = frames.transpose(1, 2).flatten(0, 1)
        x_FND = self.patch_embedding(frames).flatten(2).transpose(1, 2)
        return x_FND.reshape(pixel_values.shape[0], -1, x_FND.shape[-1])


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
    _no_split_modules = [
        "OneVisionEncoderEmbeddings",
        "OneVisionEncoderLayer",
        "OneVisionEncoderPoolingHead",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
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
        attention_mask: torch.Tensor | None = None,
        grid_thw: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling | tuple[torch.Tensor, ...]:
        """Encodes a batch, or samples of any lengths packed into one row.

        Args:
          pixel_values: normalised pixels: an image [B, C, height, width]; a video
            [B, C, T, height, width]; or packed samples, flat patches [total, P*P*C], each in the
            order (row, column, channel). Selected patches may come tiled in raster order as the
            frames of a shorter video, or as one image.
          visible_indices: integers [B, S], index t*h*w + row*w + column of each token on the grid
            of frames of h x w patches. With S = N they only say where the (tiled) patches lie; with
            S < N these S of the N patches are kept, after `layernorm_pre`.
          patch_positions: integers [B, S, 3] or [S, 3], (t, h, w) of each token; they take the
            place of the positions that follow from the other arguments. Packed: [total, 3].
          output_attentions: also return the attention weights of each block (eager attention only).
          output_hidden_states: also return the tokens before each block and after the last one.
          return_dict: False for a plain tuple of what is not None.
          attention_mask: [B, S], 1 or True for tokens and 0 for padding, anywhere in a row that has
            a token. Padding changes no number of the others; `last_hidden_state` is 0 there.
          grid_thw: packed: integers [n, 3], frames, rows and columns of patches of each sample.
          lengths: packed: integers [n], number of patches of each sample, where they form no grid;
            without both, all patches are one sample.

        Returns:
          `last_hidden_state` [B, S, D] after `layernorm_post`; `pooler_output` [B, D];
          `hidden_states`, one more than blocks, the first after `layernorm_pre`, the last before
          `layernorm_post`; `attentions` [B, H, S, S] per block. Packed: [total, D] and [n, D].

        Raises:
          ValueError: a shape does not fit, arguments exclude each other, a video has more frames
            than the time axis, or the attention implementation keeps no weights.
        """
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if return_dict is None:
            return_dict = config.return_dict
        self._check_pixels(pixel_values)
        packed = pixel_values.ndim == 2
        if output_attentions and (packed or config._attn_implementation != "eager"):
            raise ValueError(
                "output_attentions is not there for packed patches and needs the eager attention, "
                f'not {config._attn_implementation!r}: load with attn_implementation="eager"'
            )
        stray = (visible_indices, attention_mask) if packed else (grid_thw, lengths)
        if any(argument is not None for argument in stray):
            raise ValueError(
                "visible_indices and attention_mask go with images and videos, grid_thw and "
                f"lengths with packed patches; pixel_values is {list(pixel_values.shape)}"
            )

        x_BSD = self.layernorm_pre(self.embeddings(pixel_values))
        mask_BS, ids_S, n, layout = None, None, 0, Layout()
        if packed:
            positions_BS3, ids_S, sizes = self._packed(x_BSD, patch_positions, grid_thw, lengths)
            n, layout = len(sizes), packed_layout(config._attn_implementation, ids_S, sizes)
        else:
            if visible_indices is not None and visible_indices.shape[1] != x_BSD.shape[1]:
                index = visible_indices[..., None].expand(-1, -1, x_BSD.shape[-1])
                x_BSD = x_BSD.gather(1, index)
            positions_BS3 = self._positions(pixel_values, visible_indices, patch_positions)
        if attention_mask is not None:
            if attention_mask.shape != x_BSD.shape[:2]:
                raise ValueError(
                    f"attention_mask is {list(attention_mask.shape)} for {list(x_BSD.shape[:2])} "
                    "tokens: give one value per token"
                )
            mask_BS = attention_mask.to(x_BSD.device, torch.bool)
            layout = padded_layout(config._attn_implementation, mask_BS)
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
            x_BSD, weights = layer(x_BSD, cos, sin, layout)
            if output_hidden_states:
                hidden_states.append(x_BSD)
            if output_attentions:
                attentions.append(weights)
        pooled = None
        if self.head is not None:
            x_BSD = self.layernorm_post(x_BSD)
            pooled = self.head(x_BSD, mask_BS, ids_S, n)
        if mask_BS is not None:
            x_BSD = x_BSD.masked_fill(~mask_BS[..., None], 0)
        if packed:
            x_BSD, hidden_states = x_BSD[0], [x[0] for x in hidden_states]
        output = BaseModelOutputWithPooling(
            last_hidden_state=x_BSD,
            pooler_output=pooled,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()

    def _check_pixels(self, pixel_values: torch.Tensor) -> None:
        shape, patch = list(pixel_values.shape), self.config.patch_size
        channels = self.config.num_channels
        if len(shape) == 2 and shape[1] == channels * patch**2:
            return
        if len(shape) not in (4, 5) or shape[1] != channels:
            raise ValueError(
                f"pixel_values must be [B, {channels}, height, width], "
                f"[B, {channels}, T, height, width] or [total, {channels * patch**2}], got {shape}"
            )
        if shape[-2] % patch or shape[-1] % patch:
            raise ValueError(
                f"pixel_values of {shape[-2]} x {shape[-1]} pixels must be a multiple of the "
                f"patch side {patch}"
            )

    def _check_frames(self, frames: int) -> None:
        slots = self.config.rope_temporal_size
        if slots is not None and frames > slots:
            raise ValueError(
                f"a video has {frames} frames but the time axis {slots} slots "
                "(rope_temporal_size): sample fewer frames, or give patch_positions"
            )

    def _positions(
        self,
        pixel_values: torch.Tensor,
        visible_indices: torch.Tensor | None,
        patch_positions: torch.Tensor | None,
    ) -> torch.Tensor:
        """Positions [B or 1, S, 3] of the tokens of images and videos."""
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
            self._check_frames(frames)
            index = torch.arange(frames * rows * columns, device=pixel_values.device)[None]
        return raster_positions(index, rows, columns)

    def _packed(
        self,
        x_1SD: torch.Tensor,
        patch_positions: torch.Tensor | None,
        grid_thw: torch.Tensor | None,
        lengths: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Positions [1, total, 3], sample of each token [total], and the lengths of the samples."""
        total, device = x_1SD.shape[1], x_1SD.device
        if grid_thw is not None:
            if lengths is not None:
                raise ValueError("grid_thw and lengths both give the samples' lengths: drop one")
            lengths = grid_thw.prod(-1)
        elif patch_positions is None:
            raise ValueError("packed patches need grid_thw or patch_positions")
        sizes = [total] if lengths is None else lengths.tolist()
        if sum(sizes) != total or min(sizes) < 1:
            raise ValueError(
                f"grid_thw or lengths say {sizes} patches: each must be at least 1, and all of "
                f"them the {total} of pixel_values"
            )
        sizes_n = torch.tensor(sizes, device=device)
        ids_S = torch.arange(len(sizes), device=device).repeat_interleave(sizes_n)
        if patch_positions is not None:
            positions_S3 = patch_positions.to(device)
            if positions_S3.ndim != 2 or positions_S3.shape[1] != 3:
                raise ValueError(
                    "patch_positions of packed patches must be [total, 3], got "
                    f"{list(positions_S3.shape)}"
                )
        else:
            self._check_frames(int(grid_thw[:, 0].max()))
            grid_S3 = grid_thw.to(device)[ids_S]
            index_S = torch.arange(total, device=device) - (sizes_n.cumsum(0) - sizes_n)[ids_S]
            positions_S3 = raster_positions(index_S, grid_S3[:, 1], grid_S3[:, 2])
        return positions_S3[None], ids_S, sizes
