"""A conversation with a model about what it was shown; answers come word by word.

The command line and the page share it: what they show is what is here.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..data.examples import ExampleError
from ..mcq.runner import Answer
from ..templates import PLACEHOLDER

if TYPE_CHECKING:
    from ..data.visuals import Visual
    from ..mcq.answer import ModelAnswerer
    from .sight import Sight

Turns = list[dict[str, str]]

_HALF = "\ufffd"  # how a tokenizer writes the first bytes of a letter whose rest is still to come


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How an answer is chosen.

    Attributes:
      max_new_tokens: most tokens of an answer.
      temperature: 0 takes the likeliest token each time; more draws, the flatter the higher.
      top_p: draws among the likeliest tokens that together have this probability.

    Raises:
      ValueError: a number is out of range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens} must be at least 1")
        if not 0 <= self.temperature <= 10:
            raise ValueError(f"temperature = {self.temperature} must lie in 0..10")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} must be more than 0 and at most 1")

    def options(self) -> dict[str, Any]:
        """Of transformers' `generate`, beside those of a greedy answer."""
        if self.temperature == 0:
            return {}
        # top_k = 0 is no limit; unset, transformers takes 50.
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {"do_sample": True, **drawn}


class Conversation:
    """Questions and answers about one video or image, each question with all that was said before.

    Args:
      answerer: the model.
      sight: what it is shown, in front of the first question as in training.
    """

    def __init__(self, answerer: ModelAnswerer, sight: Sight) -> None:
        self.answerer, self.sight = answerer, sight
        self._turns: Turns = []
        self._stop = threading.Event()
        self._busy = threading.Lock()
        self.last: Answer | None = None

    @property
    def turns(self) -> Turns:
        """What was said, as data sets have it; the first question shows the visual."""
        return [dict(turn) for turn in self._turns]

    def said(self) -> Turns:
        """The same in words alone."""
        turns = self.turns
        if turns:
            turns[0]["value"] = turns[0]["value"].removeprefix(self.sight.opening)
        return turns

    def ask(self, question: str, decoding: Decoding = Decoding()) -> Generator[str]:  # noqa: B008
        """Asks, and tells the answer as it comes.

        Args:
          question: in words.
          decoding: how the answer is chosen.

        Yields:
          The answer so far; the last one is all of it, as `generate` gives it. An answer that is
          stopped, or whose generator is closed, stays in the conversation as far as it came; a
          question that fails leaves no trace.

        Raises:
          ValueError: an empty question, one with a placeholder, one while another is answered, or
            a conversation that has outgrown the model's context.
        """
        question = question.strip()
        if not question:
            raise ValueError("the question is empty")
        if found := PLACEHOLDER.search(question):
            raise ValueError(
                f"the question holds {found[0]}, which stands for what is shown: leave it out"
            )
        if not self._busy.acquire(blocking=False):
            raise ValueError("the question before is still being answered")
        said, whole = "", False
        try:
            self._stop.clear()
            opening = "" if self._turns else self.sight.opening
            turns = [*self._turns, {"from": "human", "value": opening + question}]
            answer = stream(self.answerer, turns, [self.sight.visual], decoding, self._stop)
            try:
                while True:
                    said = next(answer)
                    yield said
            except StopIteration as end:
                self.last, whole = end.value, True
            except (GeneratorExit, KeyboardInterrupt):
                answer.close()
                whole = bool(said.strip())
                raise
            except ExampleError as error:
                raise _outgrown(error, bool(self._turns)) from error
        finally:
            if whole:
                # Templates put their own space in front of an answer.
                self._turns = [*turns, {"from": "gpt", "value": said.strip()}]
            self._busy.release()

    def stop(self) -> None:
        """Ends the answer that is being given, behind the token that is being made."""
        self._stop.set()


def stream(
    answerer: ModelAnswerer,
    turns: Turns,
    visuals: Sequence[Visual],
    decoding: Decoding,
    stop: threading.Event,
) -> Generator[str, None, Answer]:
    """One reply, as it comes.

    Args:
      answerer: the model.
      turns, visuals: of the conversation, as `prompt_example` takes them.
      decoding: how tokens are chosen.
      stop: set, it ends the reply.

    Yields:
      The text so far, whenever there is more of it. Letters that are not whole and white space at
      the end wait for what comes behind; the last text is the reply, and equal to
      `answerer.converse`'s.

    Returns:
      What `answerer.converse` returned: the reply and the counts of its tokens.

    Raises:
      ExampleError: the conversation does not fit the context, or not what is shown.
      RuntimeError: the model failed, for example for want of memory.
    """
    tokens = _Tokens()
    options = {
        **decoding.options(),
        "streamer": tokens,
        "stopping_criteria": StoppingCriteriaList([_Stopped(stop)]),
    }
    ids: list[int] = []
    shown = ""
    with ThreadPoolExecutor(1, "codecvit-answer") as pool:
        reply = pool.submit(
            answerer.converse, [(turns, visuals)], decoding.max_new_tokens, **options
        )
        reply.add_done_callback(lambda _: tokens.arrived.put(None))
        try:
            for new in tokens:
                ids += new
                text = answerer.tokenizer.decode(ids, skip_special_tokens=True)
                text = text.rstrip(_HALF).rstrip()
                if text != shown:
                    shown = text
                    yield text
        finally:
            stop.set()  # nobody listens any more; and where all came, nothing is left to stop
    (answer,) = reply.result()
    assert answer.reply is not None, "converse replies"
    if answer.reply != shown:
        yield answer.reply
    return answer


class _Tokens(BaseStreamer):
    """New ids, from the thread that makes them to the one that shows them."""

    def __init__(self) -> None:
        self.arrived: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        self._in_prompt = True

    def put(self, value: torch.Tensor) -> None:
        # The first call has the ids of the prompt: none, as it is made of embeddings.
        if not self._in_prompt:
            self.arrived.put(value.reshape(-1).tolist())
        self._in_prompt = False

    def end(self) -> None:
        """The end of `generate` is not yet that of `converse`, which says it itself."""

    def __iter__(self) -> Iterator[list[int]]:
        while (new := self.arrived.get()) is not None:
            yield new


class _Stopped(StoppingCriteria):
    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._stop.is_set(), device=input_ids.device)


def _outgrown(error: ExampleError, later: bool) -> ValueError:
    if error.kind != "OVERFLOW":
        return error
    remedy = "begin a new conversation" if later else "show less of the video"
    return ValueError(
        f"{error.reason.partition(':')[0]}, the model's context without the tokens that the answer "
        f"may have: allow fewer of these (max_new_tokens), or {remedy}"
    )
