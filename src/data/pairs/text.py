"""The texts of a pair -> the token rows of a batch.

As OpenVision trains (arXiv 2505.04601): the web caption, one sentence of the synthetic caption, and
the whole synthetic caption as the target.

Shape suffixes: T text tokens, O target tokens.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..tokenizers import Tokenizer

CHOICES = ("sentence", "full", "first")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairTextConfig:
    """Which texts of a pair become which rows.

    Attributes:
      token_len: T.
      output_token_len: O.
      web: name of the text that is `text_0`.
      synthetic: name of the text that gives `text_1` and `target`.
      choice: what `text_1` is of it: a `sentence` drawn anew each time, the `full` text, or the
        `first` sentence. A sentence ends at `.` or `!`.
    """

    token_len: int = 80
    output_token_len: int = 128
    web: str = "text_0"
    synthetic: str = "text_1"
    choice: str = "sentence"

    def __post_init__(self) -> None:
        if self.token_len < 4:
            raise ValueError(f"text.token_len = {self.token_len} must be at least 4")
        if self.output_token_len < 2:
            raise ValueError(f"text.output_token_len = {self.output_token_len} must be at least 2")
        if self.choice not in CHOICES:
            raise ValueError(f"text.choice = {self.choice!r} must be one of {', '.join(CHOICES)}")


class Chosen(NamedTuple):
    """What a pair says in one example.

    Attributes:
      web, synthetic, target: the texts of `text_0`, `text_1` and `target`.
      lacked: whether one of the two captions was missing, and the other one stood in.
    """

    web: str
    synthetic: str
    target: str
    lacked: bool


def choose_texts(
    texts: Mapping[str, str], config: PairTextConfig, rng: np.random.Generator | None
) -> Chosen | None:
    """What a pair says in one example.

    Args:
      texts: of the pair, none of them empty.
      config: which are what.
      rng: of the sentence; None takes the first one.

    Returns:
      The texts, or None if neither of the two captions is there.
    """
    web, synthetic = texts.get(config.web, ""), texts.get(config.synthetic, "")
    if not web and not synthetic:
        return None
    lacked = not web or not synthetic
    web, synthetic = web or synthetic, synthetic or web
    part = synthetic
    if config.choice != "full":
        sentences = split_sentences(synthetic)
        place = 0
        if config.choice == "sentence" and rng is not None:
            place = int(rng.integers(len(sentences)))
        part = sentences[place]
    return Chosen(web, part, synthetic, lacked)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text without their `.` or `!`; a text without any is one sentence."""
    return [part for part in map(str.strip, re.split(r"[.!]", text)) if part] or [text]


def text_rows(
    chosen: Chosen, tokenizer: Tokenizer, config: PairTextConfig
) -> dict[str, np.ndarray]:
    """`text_0`, `text_1` int32 [T], `target` int32 [O] and `target_mask` bool [O]."""
    target, mask = tokenizer.target(chosen.target, config.output_token_len)
    return {
        "text_0": tokenizer.encode(chosen.web, config.token_len),
        "text_1": tokenizer.encode(chosen.synthetic, config.token_len),
        "target": target,
        "target_mask": mask,
    }


def empty_rows(tokenizer: Tokenizer, config: PairTextConfig) -> dict[str, np.ndarray]:
    """Rows that say nothing: padding, and a mask of False."""
    pad = tokenizer.ids.pad
    return {
        "text_0": np.full(config.token_len, pad, np.int32),
        "text_1": np.full(config.token_len, pad, np.int32),
        "target": np.full(config.output_token_len, pad, np.int32),
        "target_mask": np.zeros(config.output_token_len, bool),
    }
