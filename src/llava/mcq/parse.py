"""From a question to a prompt, and from a reply to one of the offered options or to none.

A strict reader costs a model points where it rambles; a lenient one gives points for "Camera is
moving" read as C. Both are here, under their names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from .questions import LETTERS, Question

_MERV_MOST = 5

# "The correct answer is (B)", "Answer: B", "Option B"
_LEAD = re.compile(
    r"(?:the )?(?:(?:correct|best|right) )?(?:answer|option)\b(?: is\b)?\s*:?\s*", re.I
)
_LETTER = re.compile(r"\(([A-Za-z])\)[.:]?|([A-Za-z])(?:[.):]|(?=$))")
_PLACEHOLDERS = re.compile(r"\s*<(?:image|video)>\s*")


class Parsed(NamedTuple):
    """What a reply says.

    Attributes:
      option: index of the chosen option; None if it chooses none, or (mvbench_compat) several.
      correct: it counts as right.
      parsed: it could be read at all.
    """

    option: int | None
    correct: bool
    parsed: bool


class Strategy(NamedTuple):
    """How a question is asked and its reply read.

    Attributes:
      name: on the command line and in results.
      template: of the prompt, as stated in results; {letters}, {lettered}, {bracketed} are made of
        the options.
      read: (reply, question) -> what it says; None where options are compared by their
        log-probability.
      most_options: more are refused.
    """

    name: str
    template: str
    read: Callable[[str, Question], Parsed] | None
    most_options: int = len(LETTERS)

    def prompt(self, question: Question) -> str:
        """What the model is asked, without the video's placeholder.

        Raises:
          ValueError: more options than the strategy has letters for.
        """
        if len(question.options) > self.most_options:
            raise ValueError(
                f"question {question.id} has {len(question.options)} options; strategy "
                f"{self.name} takes at most {self.most_options}"
            )
        lettered = zip(question.letters, question.options, strict=True)
        lettered = list(lettered)
        # Options may hold braces: only the template is a format.
        return self.template.format(
            question=_plain(question.text),
            letters=", ".join(question.letters),
            lettered="\n".join(f"{letter}. {_plain(text)}" for letter, text in lettered),
            bracketed="\n".join(f"({letter}) {_plain(text)}" for letter, text in lettered),
        )


def read_letter(reply: str, question: Question) -> Parsed:
    """A bare letter, `(C)`, `C.`, `C)`, `C:`, with its own option's text or without; the same after
    "Answer:", "The answer is"; or an option's exact text. Anything else is unparsed.

    Case, surrounding space and a final full stop do not count. A letter that was not offered is
    none; text that two options share is none.
    """
    reply = " ".join(reply.split())
    options = [_normal(text) for text in question.options]
    # The text goes first in "Option B is wrong", which may be an option, and not in a bare letter.
    if not _LETTER.fullmatch(reply) and options.count(_normal(reply)) == 1:
        return _chosen(options.index(_normal(reply)), question)
    lead = _LEAD.match(reply)
    rest = reply[lead.end() :] if lead else reply
    if lead and not _LETTER.match(rest) and options.count(_normal(rest)) == 1:
        return _chosen(options.index(_normal(rest)), question)
    found = _LETTER.match(rest)
    if found is None:
        return _UNPARSED
    option = question.letters.find((found[1] or found[2]).upper())
    rest = _normal(rest[found.end() :])
    if option < 0 or rest not in ("", options[option]):
        return _UNPARSED
    return _chosen(option, question)


def read_first_char(reply: str, question: Question) -> Parsed:
    """MERV's rule: the first character, whatever follows. Counts "Camera is moving" as C."""
    option = question.letters.find(reply[:1].upper()) if reply else -1
    return _UNPARSED if option < 0 else _chosen(option, question)


def read_mvbench(reply: str, question: Question) -> Parsed:
    """VideoGPT+'s rule for MVBench: the second of the words between single spaces, without full
    stops, is part of "(x)", or "(x)" is part of it.

    Known faults, kept because published numbers have them: "(B) a" counts as A, "Answer:  (B)" (two
    spaces) as everything. A reply of one word, where theirs stops, is unparsed.
    """
    words = reply.lower().split(" ")
    if len(words) < 2:
        return _UNPARSED
    word, bare = words[1], words[1].replace(".", "")
    marks = [f"({letter.lower()})" for letter in question.letters]
    hits = [i for i, mark in enumerate(marks) if bare in mark or mark in word]
    if not hits:
        return _UNPARSED
    return Parsed(hits[0] if len(hits) == 1 else None, question.answer in hits, True)


_UNPARSED = Parsed(None, False, False)

_ASK_LETTER = "{question}\n{lettered}\nAnswer with the letter of the right option only."
STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("letter", _ASK_LETTER, read_letter),
        Strategy("loglik", _ASK_LETTER, None),
        Strategy(
            "first_char",
            "{question} Choose the right answer among the options below. Reply with exactly one of "
            "{letters}.\n\n{lettered}",
            read_first_char,
            _MERV_MOST,
        ),
        Strategy(
            "mvbench_compat",
            "Question: {question}\nOptions:\n{bracketed}\nGive the best option only.",
            read_mvbench,
        ),
    )
}


def strategy_named(name: str) -> Strategy:
    """The strategy; raises ValueError for an unknown name."""
    if name not in STRATEGIES:
        raise ValueError(f"strategy = {name!r} must be one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def _chosen(option: int, question: Question) -> Parsed:
    return Parsed(option, option == question.answer, True)


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".").rstrip()


def _plain(text: str) -> str:
    """Without placeholders, which some data sets have in questions: the runner places the video."""
    return _PLACEHOLDERS.sub(" ", text).strip() if "<" in text else text
