"""What joins visual tokens and text: their count, the loss, and what `forward` returns.

Shape suffixes: B rows, S tokens of a row, V visuals, K columns that have logits, v the vocabulary.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput

from .config import VISUAL_TOKEN

IGNORE = -100
"""The label of tokens that are not supervised, as in transformers."""


@dataclasses.dataclass
class LlavaOutput(ModelOutput):
    """What `forward` returns.

    Attributes:
      loss: with `labels`: mean negative log-likelihood of the supervised tokens, or their sum over
        `num_items_in_batch`.
      logits: [B, S, vocabulary]; with `labels` only those before a supervised token of any row,
        [B, len(logit_positions), vocabulary].
      logit_positions: with `labels`, the columns of `input_ids` that `logits` belong to.
      fusion_weights: float32 [V, encoders], what each encoder counts for in each visual, columns as
        in `config.encoder_names`; None where the fusion has no weights, or there is no visual.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    logit_positions: torch.Tensor | None = None
    fusion_weights: torch.Tensor | None = None


def supervised_loss(
    logits_BKv: torch.Tensor,
    targets_BK: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross-entropy in float32, the mean over targets other than -100, 0 if there is none.

    Args:
      logits_BKv: of the positions before the targets.
      targets_BK: ids, or -100.
      num_items_in_batch: divide the sum by this in place of the number of targets.
    """
    total = nn.functional.cross_entropy(
        logits_BKv.flatten(0, 1).float(),
        targets_BK.flatten(),
        ignore_index=IGNORE,
        reduction="sum",
    )
    if num_items_in_batch is None:
        num_items_in_batch = (targets_BK != IGNORE).sum().clamp(min=1)
    return total / num_items_in_batch


def check_counts(here_BS: torch.Tensor, counts_V: torch.Tensor) -> None:
    """Checks that every row holds the tokens of whole visuals, in order.

    Args:
      here_BS: True at visual tokens.
      counts_V: tokens that each visual makes.

    Raises:
      ValueError: it does not; the message has both numbers.
    """
    rows, counts = here_BS.sum(1).tolist(), counts_V.tolist()
    if sum(rows) != sum(counts):
        raise ValueError(
            f"input_ids has {sum(rows)} visual tokens ({VISUAL_TOKEN}), but the {len(counts)} "
            f"visuals make {sum(counts)}: {rows} per row and {counts} per visual"
        )
    visual = 0
    for row, wanted in enumerate(rows):
        have = 0
        while have < wanted:
            have += counts[visual]
            visual += 1
        if have != wanted:
            raise ValueError(
                f"row {row} of input_ids has {wanted} visual tokens ({VISUAL_TOKEN}), but its "
                f"visuals make {have}: visuals make {counts}, row by row there are {rows}"
            )
