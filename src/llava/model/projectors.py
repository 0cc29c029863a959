"""From features of patches to visual tokens in the language model's width.

Shape suffixes: L patches of all visuals together, A (patch, cell) pairs, C cells, N visual tokens,
Q queries of a step, T steps, D width of the encoder, E of the language model, H heads.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from .config import LlavaConfig
from .fusion import reset_fusion
from .pooling import Arrangement

CODE_FREQUENCIES = 32


def cell_means(features_LD: torch.Tensor, plan: Arrangement) -> torch.Tensor:
    """The mean of each cell's patches, [C, D]; 0 for empty cells. Summed in float32 at least."""
    exact = torch.promote_types(features_LD.dtype, torch.float32)
    sums_CD = features_LD.new_zeros((plan.cells, features_LD.shape[1]), dtype=exact)
    sums_CD = sums_CD.index_add(0, plan.cell_A, features_LD[plan.source_A].to(exact))
    count_C = torch.bincount(plan.cell_A, minlength=plan.cells).clamp(min=1)
    return (sums_CD / count_C[:, None]).to(features_LD.dtype)


class CellPool(nn.Module):
    """Means of the cells, and what stands in for empty ones."""

    def __init__(self, config: LlavaConfig, width: int) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(width)) if config.pool_empty == "learned" else None

    def forward(self, features_LD: torch.Tensor, plan: Arrangement) -> torch.Tensor:
        """[L, D] -> [N, D]."""
        cells_CD = cell_means(features_LD, plan)
        if self.empty is None:
            return cells_CD[plan.token_N]
        # -1 is the last row. It takes part in every graph, so that it always has a gradient.
        return torch.cat([cells_CD, self.empty[None].to(cells_CD.dtype)])[plan.token_N]


def mlp(inner: int, width: int, layers: int) -> nn.Sequential:
    """Linear layers with GELU between them; all but the first are `width` wide (LLaVA-1.5)."""
    steps: list[nn.Module] = [nn.Linear(inner, width)]
    for _ in range(layers - 1):
        steps += [nn.GELU(), nn.Linear(width, width)]
    return nn.Sequential(*steps)


class PositionCode(nn.Module):
    """Adds a fixed (t, h, w) sine-cosine code through a learned map that starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 6 * CODE_FREQUENCIES))

    def forward(self, features_LD: torch.Tensor, positions_L3: torch.Tensor) -> torch.Tensor:
        """[L, D] -> [L, D]. Frequencies are 10000^(-i/32), i = 0..31, on each axis."""
        steps = torch.arange(CODE_FREQUENCIES, device=positions_L3.device) / CODE_FREQUENCIES
        angles = positions_L3[..., None].float() * 10000.0**-steps
        code = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
        return features_LD + nn.functional.linear(code.to(features_LD.dtype), self.weight)


class NeighbourConv(nn.Module):
    """A 3 x 3 x 3 convolution over the patches that are there.

    On a full grid it equals `Conv3d(D, E, 3, padding=1)`; elsewhere absent neighbours count as
    zeros, and only places of patches have an output. Neighbours in time are neighbouring steps.
    """

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inner, width, kernel_size=3, padding=1)

    def forward(self, features_LD: torch.Tensor, places_L4: torch.Tensor) -> torch.Tensor:
        """[L, D] -> [L, E]; `places_L4` are integers (visual, step, h, w)."""
        padded_L4 = places_L4 + torch.tensor([0, 1, 1, 1], device=places_L4.device)
        sizes = padded_L4.amax(0) + 2
        strides = sizes.flip(0).cumprod(0).flip(0).roll(-1, 0)
        strides[-1] = 1
        key_L = (padded_L4 * strides).sum(1)
        keys, first_L = torch.unique(key_L, return_inverse=True)
        holder = torch.zeros_like(keys).scatter_reduce(
            0, first_L, torch.arange(len(key_L), device=key_L.device), "amax", include_self=False
        )
        weight_EDTHW = self.conv.weight
        exact = torch.promote_types(features_LD.dtype, torch.float32)
        out_LE = self.conv.bias.to(exact).expand(len(key_L), -1)
        for t, h, w in itertools.product((-1, 0, 1), repeat=3):
            wanted_L = key_L + t * strides[1] + h * strides[2] + w
            found_L = torch.searchsorted(keys, wanted_L).clamp(max=len(keys) - 1)
            there_L = (keys[found_L] == wanted_L).nonzero()[:, 0]
            source = holder[found_L[there_L]]
            part = nn.functional.linear(features_LD[source], weight_EDTHW[..., t + 1, h + 1, w + 1])
            out_LE = out_LE.index_add(0, there_L, part.to(exact))
        return out_LE.to(features_LD.dtype)


class AttentivePooler(nn.Module):
    """Learned queries look at the patches of one time cell (V-JEPA's attentive pooler, MERV).

    One cross-attention block: q + Attention(q, LN(x)), then + MLP(LN(q)) with ratio 4.
    """

    heads = 8

    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        if width % self.heads:
            raise ValueError(
                f"attentive: the encoder's width {width} must be a multiple of {self.heads} heads"
            )
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.norm1 = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, features_LD: torch.Tensor, plan: Arrangement) -> torch.Tensor:
        """[L, D] -> [N, D], step after step, the queries of each in order."""
        order_A = plan.cell_A.argsort(stable=True)
        step_A, source_A = plan.cell_A[order_A], plan.source_A[order_A]
        size_T = torch.bincount(step_A, minlength=plan.cells)
        column_A = torch.arange(len(step_A), device=step_A.device)
        column_A = column_A - (size_T.cumsum(0) - size_T)[step_A]
        T, longest = plan.cells, int(size_T.max())
        kv_LD = self.kv(self.norm1(features_LD))
        kv_TSD = kv_LD.new_zeros(T, longest, kv_LD.shape[1])
        kv_TSD = kv_TSD.index_put((step_A, column_A), kv_LD[source_A])
        mask_TS = torch.arange(longest, device=size_T.device) < size_T[:, None]
        key_THSd, value_THSd = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in kv_TSD.chunk(2, dim=-1)
        )
        queries_QD = self.queries.to(features_LD.dtype)
        query_HQd = self.q(queries_QD).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        mixed_THQd = nn.functional.scaled_dot_product_attention(
            query_HQd.expand(T, -1, -1, -1), key_THSd, value_THSd, mask_TS[:, None, None]
        )
        x_TQD = queries_QD + self.out(mixed_THQd.transpose(1, 2).flatten(2))
        x_TQD = x_TQD + self.mlp(self.norm2(x_TQD))
        return x_TQD.flatten(0, 1)


class Merger(nn.Module):
    """LayerNorm, 2 x 2 neighbours side by side, MLP; an absent neighbour is zeros behind the norm.

    The projector of LLaVA-OneVision-2 with neighbours found by position.
    """

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inner)
        self.mlp = nn.Sequential(
            nn.Linear(4 * inner, 4 * inner), nn.GELU(), nn.Linear(4 * inner, width)
        )

    def forward(self, features_LD: torch.Tensor, plan: Arrangement) -> torch.Tensor:
        """[L, D] -> [C, E]. Patches that repeat a place are averaged."""
        x_LD = self.norm(features_LD)
        slot_L = plan.cell_A * 4 + plan.corner_A
        blocks = x_LD.new_zeros(plan.cells * 4, x_LD.shape[1]).index_add(0, slot_L, x_LD)
        count = torch.bincount(slot_L, minlength=plan.cells * 4).clamp(min=1)
        blocks = (blocks / count[:, None]).to(x_LD.dtype)
        return self.mlp(blocks.view(plan.cells, -1))


class Projector(nn.Module):
    """The projector that a configuration names.

    Args:
      config: of the model; `projector`, `pool*` and `position_embedding` are read.
      inner: width of the encoder; None: of the one encoder of `vision_config`.
    """

    def __init__(self, config: LlavaConfig, inner: int | None = None) -> None:
        super().__init__()
        inner = config.vision_config.hidden_size if inner is None else inner
        width = config.text_config.hidden_size
        kind, _, last = config.projector.rpartition("+")
        self.code = PositionCode(inner) if config.position_embedding == "sincos" else None
        self.conv = self.pool = self.merger = self.mlp = None
        if last == "merger":
            self.merger = Merger(inner, width)
            return
        if kind == "3dconv":
            self.conv = NeighbourConv(inner, width)
            inner = width
        if kind == "attentive":
            self.pool = AttentivePooler(inner, config.pool[1] * config.pool[2])
        elif config.pools:
            self.pool = CellPool(config, inner if config.pool_first else width)
        self.pool_first = config.pool_first or kind == "attentive"
        layers = 1 if last == "linear" else int(last[3:-6])
        self.mlp = mlp(inner, width, layers)

    def forward(
        self, features_LD: torch.Tensor, positions_L3: torch.Tensor, plan: Arrangement
    ) -> torch.Tensor:
        """Features [L, D] -> visual tokens [N, E]."""
        x = features_LD
        if self.code is not None:
            x = self.code(x, positions_L3)
        if self.merger is not None:
            return self.merger(x, plan)
        if self.conv is not None:
            x = self.conv(x, plan.place_L4)
        if self.pool is None:
            return self.mlp(x)
        if self.pool_first:
            return self.mlp(self.pool(x, plan))
        return self.pool(self.mlp(x), plan)


def init_weights(module: nn.Module) -> None:
    """Draws one module's own parameters: linear maps as torch does, codes and empty cells zero."""
    if reset_fusion(module):
        return
    if isinstance(module, PositionCode):
        nn.init.zeros_(module.weight)
    elif isinstance(module, AttentivePooler):
        nn.init.normal_(module.queries, std=0.02)
    elif isinstance(module, CellPool) and module.empty is not None:
        nn.init.zeros_(module.empty)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear | nn.Conv3d):
        bound = module.weight[0].numel() ** -0.5
        nn.init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            nn.init.uniform_(module.bias, -bound, bound)
