"""Replies are read strictly, or by the published rules with their known faults."""

from __future__ import annotations

import pytest

from codecvit.llava.mcq.parse import (
    STRATEGIES,
    read_first_char,
    read_letter,
    read_mvbench,
    strategy_named,
)
from codecvit.llava.mcq.questions import Question


def question(*options, answer=0):
    options = options or ("The camera", "A dog runs.", "moving", "It stands")
    return Question(0, "q", "task", "What happens?", options, answer, "v.mp4")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("C", "C"),
        ("c", "C"),
        (" C \n", "C"),
        ("(C)", "C"),
        ("(c).", "C"),
        ("C.", "C"),
        ("C)", "C"),
        ("C:", "C"),
        ("Answer: C", "C"),
        ("answer: (C)", "C"),
        ("Answer:  C.", "C"),
        ("The answer is C.", "C"),
        ("The correct answer is (B)", "B"),
        ("Option D", "D"),
        ("moving", "C"),
        ("Moving.", "C"),
        ("a dog  runs", "B"),
        ("C. moving", "C"),
        ("(B) A dog runs.", "B"),
        ("The answer is moving", "C"),
        # The text of another option, or of none, behind a letter
        ("C. It stands", None),
        ("C. moving fast", None),
        # Words that only begin with a letter
        ("Camera is moving", None),
        ("A camera moves", None),
        ("A dog", None),
        ("Because", None),
        ("Both", None),
        # Not offered, not one, not said
        ("E", None),
        ("(Z)", None),
        ("A or B", None),
        ("A, B", None),
        ("A. B.", None),
        ("", None),
        (" ", None),
        ("Answer:", None),
        ("Answers", None),
        ("Answera", None),
        ("I cannot tell", None),
        ("3", None),
    ],
)
def test_strict_letters(reply, letter):
    parsed = read_letter(reply, question(answer=2))
    assert parsed.option == (None if letter is None else "ABCD".index(letter))
    assert parsed.parsed == (letter is not None)
    assert parsed.correct == (letter == "C")


def test_letters_are_those_offered():
    assert read_letter("C", question("x", "y")).option is None
    assert read_letter("B", question("x", "y")).option == 1


def test_text_that_two_options_share_chooses_none():
    assert not read_letter("red", question("Red", "red.", "blue")).parsed
    assert read_letter("A", question("Red", "red.", "blue")).option == 0


def test_options_that_are_letters_are_chosen_by_their_own_letter():
    shuffled = question("C", "A", "B")
    assert read_letter("A", shuffled).option == 0
    assert read_letter("(B)", shuffled).option == 1


def test_first_char_counts_as_merv_does():
    for reply, option in (("C", 2), ("c) x", 2), ("Camera is moving", 2), ("(C)", None)):
        assert read_first_char(reply, question(answer=2)).option == option
    for reply in ("", " C", "Z", "E"):
        assert not read_first_char(reply, question()).parsed


@pytest.mark.parametrize(
    ("reply", "correct", "parsed"),
    [
        ("Answer: (A) x", True, True),
        ("Answer: (B) x", False, True),
        ("Answer: A", True, True),
        # Published faults
        ("(B) a", True, True),
        ("Answer:  (B)", True, True),
        ("so .", True, True),
        ("so )", True, True),
        ("(A) yes", False, False),
        # Where theirs raises IndexError
        ("A", False, False),
        ("(A)", False, False),
        ("", False, False),
    ],
)
def test_mvbench_compat_counts_as_videogpt_plus_does(reply, correct, parsed):
    found = read_mvbench(reply, question(answer=0))
    assert (found.correct, found.parsed) == (correct, parsed)


def test_prompts_hold_the_question_and_every_option_once():
    asked = question("{braces}", "<video> in it", "50 %")
    for strategy in STRATEGIES.values():
        prompt = strategy.prompt(asked)
        assert prompt.count("What happens?") == prompt.count("{braces}") == 1
        assert "<video>" not in prompt  # the runner places it, once
    assert "A. {braces}\nB. in it\nC. 50 %" in strategy_named("letter").prompt(asked)
    assert "(C) 50 %" in strategy_named("mvbench_compat").prompt(asked)
    assert "exactly one of A, B, C." in strategy_named("first_char").prompt(asked)


def test_limits_of_strategies_are_told():
    with pytest.raises(ValueError, match="takes at most 5"):
        strategy_named("first_char").prompt(question(*"123456"))
    with pytest.raises(ValueError, match="must be one of letter"):
        strategy_named("naive")
    with pytest.raises(ValueError, match="27 options"):
        question(*map(str, range(27)))
