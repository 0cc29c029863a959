"""Conversation templates: the one place where the text of training and of inference is made.

A conversation is a list of turns as LLaVA's files have them: {"from": "human" | "gpt", "value":
text}, perhaps with a "system" turn in front. `<image>` and `<video>` stay in the texts; whoever
turns text into ids replaces them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Turn = Mapping[str, str]

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
PLACEHOLDER = re.compile("<image>|<video>")


class Piece(NamedTuple):
    """Text of which all or nothing is supervised."""

    text: str
    supervised: bool


@dataclasses.dataclass(frozen=True)
class Template:
    """How turns become text.

    Attributes:
      name: key in `TEMPLATES`.
      start: text at the very start.
      system: format of the system text; "" where it is `default_system` that comes first in a turn.
      user: format of a question, up to where the answer begins.
      first_user: the same for the first question after a system text, where that differs.
      answer: format of an answer with its end of turn, all of it supervised.
      after: text behind an answer, not supervised.
      default_system: system text where a conversation has none; None for no system turn.
      end: the text that ends an answer.
      specials: texts that a tokenizer for this template has as single tokens.
      placeholders_only: of a question only the placeholders stay.
      strip: white space around questions and answers is cut off.
    """

    name: str
    user: str
    answer: str
    end: str
    start: str = ""
    system: str = "{}"
    first_user: str | None = None
    after: str = ""
    default_system: str | None = None
    specials: tuple[str, ...] = ()
    placeholders_only: bool = False
    strip: bool = False

    def render(self, conversation: Sequence[Turn], system: str | None = None) -> list[Piece]:
        """The text of a conversation in pieces.

        Args:
          conversation: turns, questions and answers in alternation.
          system: system text, in place of the template's default; the conversation's own system
            turn goes before both.

        Returns:
          Pieces that alternate between what is given and what is supervised; joined they are the
          text of training. If the last turn is a question they end where its answer begins.

        Raises:
          ValueError: the turns don't alternate from a question on, or one is malformed.
        """
        system, turns = self._turns(conversation, system)
        context = self.start
        if system is not None and self.first_user is None:
            context += self.system.format(system)
        pieces: list[Piece] = []
        for number, (role, text) in enumerate(turns):
            if role == "user":
                if self.placeholders_only:
                    text = "\n".join(PLACEHOLDER.findall(text))
                if number == 0 and system is not None and self.first_user is not None:
                    context += self.first_user.format(system, text)
                else:
                    context += self.user.format(text)
            else:
                pieces += [Piece(context, False), Piece(self.answer.format(text), True)]
                context = self.after
        return [*pieces, Piece(context, False)] if context else pieces

    def prompt(self, conversation: Sequence[Turn], system: str | None = None) -> str:
        """The text that the model continues; the conversation ends with a question."""
        if not conversation or ROLES.get(conversation[-1].get("from", "")) != "user":
            raise ValueError("a prompt ends with a question: the last turn must be from human")
        return "".join(piece.text for piece in self.render(conversation, system))

    def _turns(
        self, conversation: Sequence[Turn], system: str | None
    ) -> tuple[str | None, list[tuple[str, str]]]:
        turns = []
        for number, turn in enumerate(conversation):
            source, text = turn.get("from"), turn.get("value")
            if not isinstance(text, str):
                raise ValueError(f"turn {number} has no text `value`")
            if source == "system" and number == 0:
                system = text
                continue
            role = ROLES.get(source)
            if role is None:
                raise ValueError(f"turn {number} is from {source!r}: it must be human or gpt")
            if role != ("user", "assistant")[len(turns) % 2]:
                raise ValueError(
                    f"turn {number} is from {source!r}: questions (human) and answers (gpt) must "
                    "alternate, a question first"
                )
            turns.append((role, text.strip() if self.strip else text))
        if not turns:
            raise ValueError("the conversation is empty")
        return (self.default_system if system is None else system), turns

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises a ValueError unless the tokenizer fits the template.

        Its special texts must be single tokens, and the padding id must be that of no ordinary
        token: an ordinary one may occur in a text, and a wrong one betrays a wrong tokenizer.
        """
        for special in self.specials:
            ids = tokenizer.encode(special, add_special_tokens=False)
            if len(ids) != 1:
                raise ValueError(
                    f"template {self.name!r}: the tokenizer makes {len(ids)} tokens of "
                    f"{special!r}: it belongs to another template"
                )
        pad = tokenizer.pad_token_id
        if pad is None:
            raise ValueError("the tokenizer has no pad token: set tokenizer.pad_token")
        added = tokenizer.added_tokens_decoder.get(pad)
        if added is None or not added.special:
            raise ValueError(
                f"the tokenizer's pad id {pad} is that of the ordinary token "
                f"{tokenizer.convert_ids_to_tokens(pad)!r}: set tokenizer.pad_token to a special "
                "token"
            )


_CHATML = Template(
    name="chatml",
    system="<|im_start|>system\n{}<|im_end|>\n",
    user="<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    answer="{}<|im_end|>",
    after="\n",
    end="<|im_end|>",
    default_system="You are a helpful assistant.",
    specials=("<|im_start|>", "<|im_end|>"),
)

TEMPLATES: dict[str, Template] = {
    "chatml": _CHATML,
    "llama2": Template(
        name="llama2",
        user="<s>[INST] {} [/INST]",
        first_user="<s>[INST] <<SYS>>\n{}\n<</SYS>>\n\n{} [/INST]",
        answer=" {} </s>",
        end="</s>",
        specials=("<s>", "</s>"),
        strip=True,
    ),
    "llama3": Template(
        name="llama3",
        start="<|begin_of_text|>",
        system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        user=(
            "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        answer="{}<|eot_id|>",
        end="<|eot_id|>",
        specials=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        strip=True,
    ),
    "phi3": Template(
        name="phi3",
        system="<|system|>\n{}<|end|>\n",
        user="<|user|>\n{}<|end|>\n<|assistant|>\n",
        answer="{}<|end|>",
        after="\n",
        end="<|end|>",
        specials=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "vicuna": Template(
        name="vicuna",
        start="<s>",
        system="{} ",
        user="USER: {} ASSISTANT:",
        answer=" {}</s>",
        end="</s>",
        default_system=(
            "A chat between a curious user and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the user's questions."
        ),
        specials=("<s>", "</s>"),
    ),
    # MERV's for Llama-2 without chat tuning. No space before the answer: SentencePiece, which sees
    # each piece by itself, puts one in front.
    "pure": Template(
        name="pure",
        start="<s>",
        system="{}\n",
        user="In: {}\nOut:",
        answer="{}</s>",
        end="</s>",
        specials=("<s>", "</s>"),
        strip=True,
    ),
    "plain": Template(name="plain", user="{}", answer="{}\n", end="\n", placeholders_only=True),
}
TEMPLATES["qwen_1_5"] = _CHATML
"""By name; "qwen_1_5" is LLaVA-NeXT's name of ChatML."""

BY_MODEL_TYPE = {
    "qwen2": "chatml",
    "qwen2_moe": "chatml",
    "qwen3": "chatml",
    "qwen3_moe": "chatml",
    "phi3": "phi3",
}


def template_for(config: Any, tokenizer: Any = None) -> Template:
    """The template of a language model.

    Args:
      config: of the language model, or of the whole model, which names its template.
      tokenizer: tells apart the models of type "llama".

    Raises:
      ValueError: the model type does not say which template it is.
    """
    named = getattr(config, "template", None)
    if named is not None:
        return TEMPLATES[named]
    model_type = config.model_type
    if model_type in BY_MODEL_TYPE:
        return TEMPLATES[BY_MODEL_TYPE[model_type]]
    if model_type == "llama" and tokenizer is not None:
        vocabulary = tokenizer.get_vocab()
        if "<|eot_id|>" in vocabulary:
            return TEMPLATES["llama3"]
    raise ValueError(
        f"model type {model_type!r} does not say which template its texts have: set template to "
        f"one of {sorted(TEMPLATES)}"
    )
