"""What a judge's reply says, or that it cannot be read.

JSON only; nothing in a reply is ever evaluated.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

LOWEST, HIGHEST = 0, 5
# A reply that is nothing but one fenced block: the fence is how chat models mark JSON.
_FENCED = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```", re.S)


class UnreadableError(ValueError):
    """A reply that is not what was asked for."""


class Verdict(NamedTuple):
    """What a judge says.

    Attributes:
      score: 0 to 5.
      pred: whether the answer is right; None for aspects that only have a score.
      truncated: the score had a fraction, which was cut off.
    """

    score: int
    pred: bool | None
    truncated: bool


def read_verdict(reply: str | None, aspect: str) -> Verdict:
    """Reads a reply strictly.

    One JSON object, alone or in one code fence: `score`, a JSON number from 0 to 5, and for the
    aspect "qa" `pred`, "yes" or "no" in any case. A fraction is cut off (4.8 is 4), as the
    published scorers' int() does; it is counted. Other fields are ignored.

    Raises:
      UnreadableError: anything else: prose, strings for numbers, values out of range, a name given
        twice, no reply.
    """
    if reply is None:
        raise UnreadableError("no reply")
    text = reply.strip()
    fenced = _FENCED.fullmatch(text)
    try:
        value = json.loads(
            fenced[1] if fenced else text, object_pairs_hook=_once, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"no JSON ({error})") from error
    if not isinstance(value, dict):
        raise UnreadableError("no JSON object")
    score = value.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise UnreadableError(f"score = {str(score)[:40]!r} is no number")
    if not LOWEST <= score <= HIGHEST:
        raise UnreadableError(f"score = {str(score)[:40]} is not from {LOWEST} to {HIGHEST}")
    pred = None
    if aspect == "qa":
        said = value.get("pred")
        said = said.strip().casefold() if isinstance(said, str) else said
        if said not in ("yes", "no"):
            raise UnreadableError("pred is neither yes nor no")
        pred = said == "yes"
    return Verdict(int(score), pred, int(score) != score)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise UnreadableError("a name is given twice")
    return value


def _no_constant(name: str) -> Any:
    raise UnreadableError(f"{name} is no JSON")
