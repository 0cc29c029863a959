"""Prompts turn by turn, in a model's template: the names are those of MERV's prompt builders.

One builder serves every language model, and its text is that of training (`templates.py`), system
text included. Torch is not needed.
"""

from __future__ import annotations

from .templates import PLACEHOLDER, Template


class Prompt(str):
    """The text of a prompt, which remembers the turns that it was made of.

    Text is tokenised turn by turn in training, so the turns give its exact ids, which the text
    alone need not. A string that was changed, `prompt + "..."`, is an ordinary one.

    Attributes:
      turns: as rows of LLaVA have them.
    """

    turns: list[dict[str, str]]

    @classmethod
    def of(cls, template: Template, turns: list[dict[str, str]]) -> Prompt:
        """The prompt that a conversation makes."""
        prompt = cls(template.prompt(turns))
        prompt.turns = [dict(turn) for turn in turns]
        return prompt

    def turns_with(self, token: str) -> list[dict[str, str]]:
        """The turns, `token` on a line before the first message unless one has a placeholder."""
        if not token or any(PLACEHOLDER.search(turn["value"]) for turn in self.turns):
            return self.turns
        first = next(i for i, turn in enumerate(self.turns) if turn["from"] != "system")
        shown = {**self.turns[first], "value": f"{token}\n{self.turns[first]['value']}"}
        return [*self.turns[:first], shown, *self.turns[first + 1 :]]


class PromptBuilder:
    """Collects a conversation.

    Args:
      template: of the model.
      system_prompt: in place of the template's own.
    """

    def __init__(self, template: Template, system_prompt: str | None = None) -> None:
        self._template = template
        self._turns: list[dict[str, str]] = []
        if system_prompt is not None:
            self._turns = [{"from": "system", "value": system_prompt}]

    def add_turn(self, role: str, message: str) -> str:
        """Adds a question ("human") or an answer ("gpt").

        Returns:
          The text that it adds to the prompt; all of them joined are the whole text.

        Raises:
          ValueError: questions and answers do not alternate, a question first.
        """
        turns = [*self._turns, {"from": role, "value": message}]
        text = self._text(turns)
        before = self._text(self._turns)
        self._turns = turns
        return text[len(before) :]

    def get_prompt(self) -> Prompt:
        """The text that the model continues.

        Raises:
          ValueError: the last turn is not a question.
        """
        return Prompt.of(self._template, self._turns)

    def _text(self, turns: list[dict[str, str]]) -> str:
        """Of all turns; text between answers and questions belongs to the question."""
        asked = [turn for turn in turns if turn["from"] != "system"]
        if not asked:
            return ""
        pieces = self._template.render(turns)
        return "".join(piece.text for piece in pieces)
