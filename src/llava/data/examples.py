"""Conversations with visuals -> token ids and labels; `collate` makes batches of them.

Text is tokenised piece by piece, and a piece ends where an answer begins: what stands before an
answer in training is, id for id, what the model is prompted with. Nothing is ever cut off.

Shape suffixes: B examples, S tokens, V visuals, P side of a patch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...codec.llava.rows import IMAGE_TOKEN, VIDEO_TOKEN, RowError, conversation
from ..model.config import VISUAL_TOKEN
from ..model.token_counts import visual_token_groups
from ..templates import ROLES, TEMPLATES, Piece
from .visuals import Visual

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..model.config import LlavaConfig

IGNORED = -100
"""The label of what is not supervised, as in transformers."""

_PLACEHOLDER = re.compile(f"({re.escape(IMAGE_TOKEN)}|{re.escape(VIDEO_TOKEN)})")


class ExampleError(ValueError):
    """A conversation that cannot be trained on, or asked.

    Attributes:
      kind: COUNT (of placeholders), OVERFLOW (of the context), ANSWER (there is none), or
        CONVERSATION.
      reason: what is wrong.
    """

    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        self.reason = reason
        super().__init__(reason)

    def __reduce__(self) -> tuple[type[ExampleError], tuple[str, str]]:
        # Worker processes send it home: the default would rebuild it from the message alone.
        return type(self), (self.kind, self.reason)


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One row of a batch.

    Attributes:
      input_ids: int64 [S], VISUAL_TOKEN where a visual's token goes.
      labels: int64 [S], the id where it is supervised, else IGNORED.
      visuals: in the order of their tokens.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    visuals: list[Visual]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def supervised(self) -> int:
        """Number of tokens whose prediction counts; the first token is never predicted."""
        return int((self.labels[1:] != IGNORED).sum())


def make_example(
    row: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    visuals: Sequence[Visual],
    tokenizer: PreTrainedTokenizerBase,
    config: LlavaConfig,
    max_length: int,
    supervise: bool = True,
) -> Example:
    """A conversation with all its answers.

    Args:
      row: has `conversations`, or is such a list of turns. A visual of G groups (mosaics; an image
        has one) stands where one `<video>` is, or G `<image>` in a row: group by group, with a
        newline between the groups of a `<video>`. With `splice` "after_bos" they stand before all
        text, and the rest of a turn is stripped of white space.
      visuals: in the order of their places.
      tokenizer: of the language model.
      config: of the model: template, timestamps, and how many tokens a visual has.
      max_length: most tokens, text and visuals together.
      supervise: label the answers, and their end-of-turn; else nothing.

    Returns:
      The example. Labels of visual tokens are IGNORED, wherever they stand.

    Raises:
      ExampleError: placeholders and visuals do not fit each other, the example is longer than
        `max_length`, or no answer is to be learnt from.
    """
    turns = _turns(row)
    example = _assemble(_render(turns, config), visuals, tokenizer, config, max_length, supervise)
    if supervise and example.supervised == 0:
        raise ExampleError("ANSWER", "has no answer to learn from")
    return example


def prompt_example(
    row: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    visuals: Sequence[Visual],
    tokenizer: PreTrainedTokenizerBase,
    config: LlavaConfig,
    max_length: int,
) -> Example:
    """A conversation up to where its last answer begins: what the model is asked.

    Args:
      row: as for `make_example`; a last answer is left out.
      visuals, tokenizer, config, max_length: as for `make_example`; leave room for the answer.

    Returns:
      The example without any supervision; its ids are the first of those that `make_example` gives.

    Raises:
      ExampleError: as `make_example`.
    """
    turns = _turns(row)
    if ROLES.get(turns[-1].get("from")) == "assistant":
        turns = turns[:-1]
    return _assemble(_render(turns, config), visuals, tokenizer, config, max_length, False)


def text_example(
    text: str,
    visuals: Sequence[Visual],
    tokenizer: PreTrainedTokenizerBase,
    config: LlavaConfig,
    max_length: int,
) -> Example:
    """A prompt that is in the model's template already.

    Args:
      text: with its template's special tokens, tokenised in one piece, placeholders apart.
      visuals, tokenizer, config, max_length: as for `make_example`.

    Raises:
      ExampleError: as `make_example`.
    """
    return _assemble([Piece(text, False)], visuals, tokenizer, config, max_length, False)


def timestamp_text(start: float, end: float) -> str:
    """The times of a group as the language model reads them, for example `<0.5-2.0 seconds>`.

    LLaVA-OneVision-2 writes `<X.X seconds>`, one decimal, before every run of equal t; a group
    spans a stretch of time, hence two numbers.
    """
    return f"<{start:.1f}-{end:.1f} seconds>"


class _Text(NamedTuple):
    text: str
    supervised: bool


class _Tokens(NamedTuple):
    count: int


def _turns(row: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    try:
        return conversation(row if isinstance(row, Mapping) else {"conversations": list(row)})
    except RowError as error:
        raise ExampleError("CONVERSATION", str(error)) from error


def _render(turns: Sequence[Mapping[str, Any]], config: LlavaConfig) -> list[Piece]:
    if config.splice == "after_bos":
        turns = [{**turn, "value": _places_first(turn["value"])} for turn in turns]
    try:
        return TEMPLATES[config.template].render(turns)
    except ValueError as error:
        raise ExampleError("CONVERSATION", str(error)) from error


def _places_first(text: str) -> str:
    """A turn with its placeholders on lines of their own in front, where it has any."""
    first, *parts = _PLACEHOLDER.split(text)
    rest = "".join([first, *parts[1::2]]).strip()
    return "\n".join([*parts[::2], rest]) if parts else text


def _before_text(
    runs: Sequence[tuple[int, list[int] | None, bool]], bos_id: int | None
) -> list[tuple[int, list[int] | None, bool]]:
    """Visual tokens before all text, but behind its BOS token where it begins with one (MERV)."""
    seen = [run for run in runs if run[1] is None]
    texts = [run for run in runs if run[1] is not None]
    if not texts or bos_id is None or texts[0][1][0] != bos_id:
        return seen + texts
    count, ids, supervised = texts[0]
    return [(1, ids[:1], supervised), *seen, (count - 1, ids[1:], supervised), *texts[1:]]


def _assemble(
    pieces: Sequence[Piece],
    visuals: Sequence[Visual],
    tokenizer: PreTrainedTokenizerBase,
    config: LlavaConfig,
    max_length: int,
    supervise: bool,
) -> Example:
    segments = _segments(pieces, visuals, config)
    texts = [s.text for s in segments if isinstance(s, _Text)]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    runs: list[tuple[int, list[int] | None, bool]] = []
    for segment in segments:
        if isinstance(segment, _Tokens):
            runs.append((segment.count, None, False))
        else:
            ids = next(encoded)
            runs.append((len(ids), ids, segment.supervised and supervise))
    if config.splice == "after_bos":
        runs = _before_text(runs, tokenizer.bos_token_id)
    length = sum(count for count, _, _ in runs)
    if length > max_length:
        seen = sum(count for count, ids, _ in runs if ids is None)
        raise ExampleError(
            "OVERFLOW",
            f"{length} tokens ({seen} visual) are more than max_length = {max_length}: raise it, "
            "or show less",
        )
    input_ids, labels = np.full(length, VISUAL_TOKEN, np.int64), np.full(length, IGNORED, np.int64)
    at = 0
    for count, ids, supervised in runs:
        if ids is not None:
            input_ids[at : at + count] = ids
            if supervised:
                labels[at : at + count] = ids
        at += count
    return Example(input_ids, labels, list(visuals))


def _segments(
    pieces: Sequence[Piece], visuals: Sequence[Visual], config: LlavaConfig
) -> list[_Text | _Tokens]:
    """Texts and runs of visual tokens, neighbouring texts of one piece joined."""
    in_text = config.splice == "placeholder"
    parts = [_PLACEHOLDER.split(piece.text) for piece in pieces]
    places = [token for part in parts for token in part[1::2]]
    shown = iter(_assign(places, visuals))
    runs = [_group_runs(visual, config) for visual in visuals]
    segments: list[_Text | _Tokens] = []
    for piece, part in zip(pieces, parts, strict=True):
        text = ""
        for number, token in enumerate(part):
            if number % 2 == 0:
                text += token if in_text or number == 0 else token.removeprefix("\n")
                continue
            for nth, (visual, group) in enumerate(next(shown)):
                if nth and config.in_turn:
                    continue  # all tokens are of the first group
                time, count = runs[visual][group]
                text += "\n" * (nth > 0 and in_text) + time
                if count and not in_text:
                    segments.append(_Tokens(count))
                elif count:
                    segments += [_Text(text, piece.supervised)] * bool(text) + [_Tokens(count)]
                    text = ""
        if text:
            segments.append(_Text(text, piece.supervised))
    return segments


def _assign(places: Sequence[str], visuals: Sequence[Visual]) -> list[list[tuple[int, int]]]:
    """For every placeholder what it shows: (visual, group) each."""
    shown: list[list[tuple[int, int]]] = []
    for number, visual in enumerate(visuals):
        groups = [(number, group) for group in range(visual.num_groups)]
        rest = places[len(shown) :]
        if rest[:1] == [VIDEO_TOKEN]:
            shown.append(groups)
        elif list(rest[: len(groups)]) == [IMAGE_TOKEN] * len(groups):
            shown += [[group] for group in groups]
        else:
            break
    else:
        if len(shown) == len(places):
            return shown
    wanted = ", ".join(str(visual.num_groups) for visual in visuals) or "none"
    images, videos = (list(places).count(token) for token in (IMAGE_TOKEN, VIDEO_TOKEN))
    raise ExampleError(
        "COUNT",
        f"{images} {IMAGE_TOKEN} and {videos} {VIDEO_TOKEN} do not fit {len(visuals)} visuals "
        f"(images of each: {wanted})",
    )


def _group_runs(visual: Visual, config: LlavaConfig) -> list[tuple[str, int]]:
    """(text of the times, number of tokens) of every group; no text before no tokens."""
    frames = 0 if visual.frames is None else len(visual.frames)
    places = (visual.positions, visual.groups, visual.grid)
    token_groups = visual_token_groups(config, *places, frames)
    assert (np.diff(token_groups) >= 0).all(), "tokens of a visual come group after group"
    counts = np.bincount(token_groups, minlength=visual.num_groups)
    times = [""] * visual.num_groups
    if config.timestamps and visual.seconds is not None:
        times = [timestamp_text(*seconds) for seconds in visual.seconds]
    return [(t if n else "", int(n)) for t, n in zip(times, counts, strict=True)]
