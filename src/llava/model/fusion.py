"""Tokens of several encoders become the visual tokens that the language model reads.

The forms are those of MERV (github.com/princetonvisualai/merv) and VideoGPT+
(github.com/mbzuai-oryx/VideoGPT-plus). Encoders are told apart by their names, and sums run in
the order of the names: the order of a list of encoders changes no number, but for "first" and
"concat", whose meaning it is.

Shape suffixes: E encoders, V visuals, N tokens of all visuals, C width of the language model, d
width of a query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

WEIGHTED = ("score", "mha_compat", "scalar", "first")
"""A sum of the encoders' tokens with one weight per encoder and visual."""

CHANNELS = ("concat_channel", "concat_channel_ln")
"""The encoders' channels side by side, through one linear map."""

TOKENS = ("concat", "dual_stream")
"""The encoders' tokens one after another; their numbers may differ."""

FUSIONS = (*WEIGHTED, *CHANNELS, *TOKENS)


class Fusion(nn.Module):
    """What `LlavaConfig.fusion` names. With one encoder it is the identity, without parameters.

    score: w = softmax_e(u . k_e), k_e the mean of encoder e's tokens; output sum_e w_e tokens_e.
      u is `vector` / sqrt(C), so that one step of an optimiser moves a score alike at every width.
    mha_compat: the same with u = W_k^T (W_q q + b_q) / sqrt(d), MERV's cross-attention of one
      learned query. What MERV stores besides (value and output maps, the bias of the keys) changes
      no output and is not here.
    scalar: one learned logit per encoder, whatever it sees.
    first: the first encoder of the list that is there.
    concat_channel: one linear map of all encoders' channels; concat_channel_ln: behind a LayerNorm
      over all of them. The channels of an absent encoder are zeros, also in the norm's statistics.
    concat: tokens, encoder after encoder of the list; dual_stream: encoders of single frames
      before those of several (VideoGPT+'s order). An absent encoder has no tokens.

    Args:
      kind: one of FUSIONS.
      names: of the encoders, in the order that counts for "first", "concat" and "dual_stream".
      width: C.
      query: d, of "mha_compat".
      bias: "score" and "mha_compat" get a learned number per encoder besides. An embedding that is
        added to the keys acts through this one number: u . (k_e + p_e) = u . k_e + u . p_e.
    """

    def __init__(
        self, kind: str, names: Sequence[str], width: int, query: int = 3072, bias: bool = False
    ) -> None:
        super().__init__()
        self.kind, self.names, self.width = kind, tuple(names), width
        many = len(self.names) > 1
        self.vector = self.logits = self.attention = self.channels = None
        if many and kind == "score":
            self.vector = nn.Parameter(torch.zeros(width))
        if many and kind == "mha_compat":
            self.attention = QueryScore(width, query)
        if many and (kind == "scalar" or (bias and kind in ("score", "mha_compat"))):
            # Not scalars, which FSDP2 cannot shard.
            self.logits = nn.ParameterDict({n: torch.zeros(1) for n in sorted(self.names)})
        if many and kind in CHANNELS:
            self.channels = ChannelMap(self.names, width, norm=kind == "concat_channel_ln")

    def forward(
        self, tokens: Mapping[str, torch.Tensor], counts: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Fuses.

        Args:
          tokens: by encoder, visual after visual, [its tokens, C].
          counts: by encoder, integers [V], tokens of each visual; 0 where the encoder is absent.

        Returns:
          Tokens [N, C], visual after visual; how many each visual has, integers [V]; and the weight
          of each encoder, float32 [V, E] in the order of `names`, or None for the forms without.

        Raises:
          ValueError: a visual has no encoder at all, or the encoders' numbers of tokens differ in a
            form that adds or joins them token by token.
        """
        counts_VE = torch.stack([counts[name] for name in self.names], dim=1)
        here_VE = counts_VE > 0
        if not bool(here_VE.any(1).all()):
            visual = int((~here_VE.any(1)).nonzero()[0])
            raise ValueError(f"visual {visual} is seen by no encoder: every one of them is absent")
        if self.kind in TOKENS:
            return self._in_turn(tokens, counts_VE), counts_VE.sum(1), None
        counts_V = counts_VE.amax(1)
        if bool((here_VE & (counts_VE != counts_V[:, None])).any()):
            told = ", ".join(f"{name} {counts[name].tolist()}" for name in self.names)
            raise ValueError(
                f"fusion = {self.kind!r} needs equal numbers of tokens of all encoders, visual by "
                f"visual, and they make {told}: give them one pool, or take concat or dual_stream"
            )
        visual_N = _owners(counts_V)
        whole = {
            name: _spread(tokens[name], here_VE[:, e], visual_N)
            for e, name in enumerate(self.names)
        }
        if self.channels is not None:
            return self.channels(whole, here_VE[visual_N]), counts_V, None
        if self.kind in CHANNELS:  # one encoder
            return whole[self.names[0]], counts_V, None
        weights_VE = self._weights(whole, here_VE, visual_N, counts_V)
        out_NC = 0.0
        for name in sorted(self.names):
            share_N1 = weights_VE[visual_N, self.names.index(name), None]
            out_NC = out_NC + share_N1.to(whole[name].dtype) * whole[name]
        return out_NC, counts_V, weights_VE

    def reset(self) -> None:
        """Draws the fusion's own weights: all encoders count alike, but for the drawn query."""
        if self.vector is not None:
            nn.init.zeros_(self.vector)
        for logit in (self.logits or {}).values():
            nn.init.zeros_(logit)

    def _weights(
        self,
        tokens: Mapping[str, torch.Tensor],
        here_VE: torch.Tensor,
        visual_N: torch.Tensor,
        counts_V: torch.Tensor,
    ) -> torch.Tensor:
        """float32 [V, E]; 0 for absent encoders."""
        if self.kind == "first" or len(self.names) == 1:
            return nn.functional.one_hot(here_VE.int().argmax(1), len(self.names)).float()
        # In the order of the names, so that no rounding depends on the list's.
        names = sorted(self.names)
        order = [self.names.index(name) for name in names]
        scores_VE = torch.zeros(here_VE.shape, device=here_VE.device)
        if self.kind != "scalar":
            u_C = self.score_vector()
            keys = [_means(tokens[name], visual_N, counts_V) for name in names]
            scores_VE = torch.stack([(keys_VC * u_C).sum(1) for keys_VC in keys], dim=1)
        if self.logits is not None:
            scores_VE = scores_VE + torch.cat([self.logits[name].float() for name in names])
        weights_VE = scores_VE.masked_fill(~here_VE[:, order], float("-inf")).softmax(1)
        return weights_VE[:, [names.index(name) for name in self.names]]

    def score_vector(self) -> torch.Tensor:
        """u of "score" and "mha_compat", float32 [C]: the score of an encoder is u . k_e."""
        if self.attention is not None:
            return self.attention()
        assert self.vector is not None, "the other forms have no score"
        return self.vector.float() / self.width**0.5

    def _in_turn(self, tokens: Mapping[str, torch.Tensor], counts_VE: torch.Tensor) -> torch.Tensor:
        """All tokens, ordered by visual, then by encoder, then as they are."""
        E = len(self.names)
        keys = [_owners(counts_VE[:, e]) * E + e for e in range(E)]
        order_N = torch.cat(keys).argsort(stable=True)
        return torch.cat([tokens[name] for name in self.names])[order_N]


class QueryScore(nn.Module):
    """The score of MERV's `cross_attention_avg_lq`: one learned query, one head.

    Args:
      width: C.
      query: d.
    """

    def __init__(self, width: int, query: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(query))
        self.q_weight = nn.Parameter(torch.empty(query, query))
        self.q_bias = nn.Parameter(torch.empty(query))
        self.k_weight = nn.Parameter(torch.empty(query, width))

    def forward(self) -> torch.Tensor:
        """u, float32 [C]."""
        q_d = self.q_weight.float() @ self.query.float() + self.q_bias.float()
        return q_d @ self.k_weight.float() / len(self.query) ** 0.5

    def reset(self) -> None:
        """As MERV draws it: Xavier, no bias."""
        for weight in (self.query[None], self.q_weight, self.k_weight):
            bound = (6 / sum(weight.shape)) ** 0.5
            nn.init.uniform_(self.query if weight.shape[0] == 1 else weight, -bound, bound)
        nn.init.zeros_(self.q_bias)

    @torch.no_grad()
    def load_multihead(self, attention: Mapping[str, torch.Tensor], query: torch.Tensor) -> None:
        """Takes over a query and a `torch.nn.MultiheadAttention`, as MERV's checkpoints hold them.

        Args:
          attention: all of its tensors: `q_proj_weight`, `k_proj_weight`, `v_proj_weight`, or
            `in_proj_weight` where C = d; `in_proj_bias`, `out_proj.weight`, `out_proj.bias`.
            Values, output and the keys' bias change no weight: they are left out once their
            shapes fit.
          query: d values, of any shape.

        Raises:
          ValueError: a tensor is missing, strange or of another shape.
        """
        d, width = self.k_weight.shape
        shapes = {"in_proj_bias": (3 * d,), "out_proj.weight": (d, d), "out_proj.bias": (d,)}
        if "in_proj_weight" in attention and width == d:
            shapes["in_proj_weight"] = (3 * d, d)
        else:
            shapes |= {"q_proj_weight": (d, d), "k_proj_weight": (d, width)}
            shapes["v_proj_weight"] = (d, width)
        found = {name: tuple(tensor.shape) for name, tensor in attention.items()}
        if found != shapes or query.numel() != d:
            wrong = sorted({*found.items()} ^ {*shapes.items()})
            raise ValueError(
                f"the attention is not that of {d} x {width} (query of {query.numel()} values): "
                f"these tensors and shapes differ: {wrong}"
            )
        if "in_proj_weight" in attention:
            q_weight, k_weight, _ = attention["in_proj_weight"].chunk(3)
        else:
            q_weight, k_weight = attention["q_proj_weight"], attention["k_proj_weight"]
        self.query.copy_(query.flatten())
        self.q_weight.copy_(q_weight)
        self.k_weight.copy_(k_weight)
        self.q_bias.copy_(attention["in_proj_bias"][:d])


class ChannelMap(nn.Module):
    """One linear map of the channels of all encoders, held in one block per encoder.

    Args:
      names: of the encoders.
      width: C.
      norm: LayerNorm over the channels of all encoders first.
    """

    def __init__(self, names: Sequence[str], width: int, norm: bool) -> None:
        super().__init__()
        self.names, self.config_names, self.width = sorted(names), tuple(names), width
        self.weight = nn.ParameterDict({n: torch.empty(width, width) for n in self.names})
        self.bias = nn.Parameter(torch.empty(width))
        self.gain = self.shift = None
        if norm:
            self.gain = nn.ParameterDict({n: torch.ones(width) for n in self.names})
            self.shift = nn.ParameterDict({n: torch.zeros(width) for n in self.names})

    def forward(self, tokens: Mapping[str, torch.Tensor], here_NE: torch.Tensor) -> torch.Tensor:
        """[N, C] of each encoder, and where it is there -> [N, C]."""
        if self.gain is not None:
            tokens = self._normed(tokens, here_NE)
        out_NC = self.bias
        for name in self.names:
            out_NC = out_NC + nn.functional.linear(tokens[name], self.weight[name])
        return out_NC

    def reset(self) -> None:
        """Draws the map as torch draws one of all channels, block after block."""
        bound = (len(self.names) * self.width) ** -0.5
        for name in self.names:
            nn.init.uniform_(self.weight[name], -bound, bound)
            if self.gain is not None:
                nn.init.ones_(self.gain[name])
                nn.init.zeros_(self.shift[name])
        nn.init.uniform_(self.bias, -bound, bound)

    def _normed(
        self, tokens: Mapping[str, torch.Tensor], here_NE: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        size = len(self.names) * self.width
        exact = {name: tokens[name].float() for name in self.names}
        mean_N1 = sum(x.sum(1, keepdim=True) for x in exact.values()) / size
        squares = sum(((x - mean_N1) ** 2).sum(1, keepdim=True) for x in exact.values())
        scale_N1 = (squares / size + 1e-5).rsqrt()
        normed = {}
        for name in self.names:
            x_NC = (exact[name] - mean_N1) * scale_N1 * self.gain[name] + self.shift[name]
            here_N1 = here_NE[:, self.config_names.index(name), None]
            normed[name] = x_NC.to(tokens[name].dtype) * here_N1
        return normed


def reset_fusion(module: nn.Module) -> bool:
    """Draws a module of this file anew; False if it is none of them."""
    if isinstance(module, Fusion | QueryScore | ChannelMap):
        module.reset()
        return True
    return False


def _owners(counts_V: torch.Tensor) -> torch.Tensor:
    """The visual of each token, [N]."""
    return torch.arange(len(counts_V), device=counts_V.device).repeat_interleave(counts_V)


def _spread(tokens: torch.Tensor, here_V: torch.Tensor, visual_N: torch.Tensor) -> torch.Tensor:
    """Tokens of the visuals that an encoder is there for -> [N, C], zeros for the others."""
    if len(tokens) == len(visual_N):
        return tokens
    out_NC = tokens.new_zeros(len(visual_N), tokens.shape[1])
    return out_NC.index_put((here_V[visual_N].nonzero()[:, 0],), tokens)


def _means(tokens_NC: torch.Tensor, visual_N: torch.Tensor, counts_V: torch.Tensor) -> torch.Tensor:
    """The mean token of each visual, float32 [V, C]."""
    sums_VC = tokens_NC.new_zeros(len(counts_V), tokens_NC.shape[1], dtype=torch.float32)
    return sums_VC.index_add(0, visual_N, tokens_NC.float()) / counts_V[:, None]
