"""Asks the questions of one chunk; whatever happens, every question gets its line."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .parse import Strategy
from .questions import Question, chunk, questions_hash
from .records import ChunkFile, Record, blank, claim, collect, pending
from .sources import VisualError

if TYPE_CHECKING:
    from ..data.visuals import Visual

VERSION = "codecvit-mcq-1"
EXPECTED = (ValueError, RuntimeError, OSError, MemoryError)
"""What a question may do to a model (a GPU out of memory is a RuntimeError); the rest are bugs."""

_HOPELESS = 20  # failures of the model in a row: it is broken, not the questions


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """What a model is given.

    Attributes:
      prompt: the text of the user's turn, without placeholder.
      visual: what it shows.
      options: the option's letters, for `loglik`.
    """

    prompt: str
    visual: Visual
    options: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model gives back.

    Attributes:
      visual_tokens, text_tokens: of what it read.
      reply: new text, of `generate`.
      scores: log-probability of each letter, of `loglik`.
      fusion: what each of several encoders counted for, by its name; None for other models.
    """

    visual_tokens: int
    text_tokens: int
    reply: str | None = None
    scores: tuple[float, ...] | None = None
    fusion: Mapping[str, float] | None = None


class Answerer(Protocol):
    """Whatever answers questions; `answer.ModelAnswerer` or a stand-in.

    An answer must not depend on what else is in its batch, but for rounding.
    """

    def generate(self, asked: Sequence[Asked]) -> list[Answer]:
        """Replies to each."""
        ...

    def loglik(self, asked: Sequence[Asked]) -> list[Answer]:
        """The log-probability of each offered letter as the beginning of the reply."""
        ...

    def describe(self) -> dict[str, Any]:
        """What decides the answers, as JSON: model, template, precision, ..."""
        ...


class VisualSource(Protocol):
    """Gives questions their visuals; `sources.Sources` or a stand-in."""

    def load(self, question: Question) -> tuple[Visual, str]:
        """(visual, its source, see `sources.Plan`); raises VisualError."""
        ...

    def describe(self) -> dict[str, Any]:
        """What decides the visuals, as JSON."""
        ...


class BrokenModel(RuntimeError):
    """A model that fails at everything."""


def describe_run(
    questions: Sequence[Question],
    benchmark: dict[str, Any],
    sources: VisualSource,
    answerer: Answerer,
    strategy: Strategy,
) -> dict[str, Any]:
    """What run.json states: all that decides the answers."""
    return {
        "version": VERSION,
        "model": answerer.describe(),
        "benchmark": {
            **benchmark,
            "questions": len(questions),
            "questions_hash": questions_hash(questions),
        },
        "strategy": strategy.name,
        "prompt": strategy.template,
        "visuals": sources.describe(),
    }


def run_chunk(
    questions: Sequence[Question],
    sources: VisualSource,
    answerer: Answerer,
    strategy: Strategy,
    out: Path,
    run: dict[str, Any],
    part: tuple[int, int] = (0, 1),
    batch_size: int = 1,
    retry: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Answers what is not answered yet in one chunk.

    Args:
      questions: all of the benchmark.
      sources: where visuals come from.
      answerer: the model.
      strategy: how it is asked.
      out: folder of the run.
      run: `describe_run`.
      part: (k, n), chunk k of n. n may differ from that of earlier calls.
      batch_size: questions asked at once; no answer depends on it.
      retry: ask again what failed in an earlier run.
      progress: told of (questions done, questions to do) after each batch.

    Returns:
      Number of lines written.

    Raises:
      ResultsError: the folder holds another run, or unusable lines.
      BrokenModel: many failures of the model in a row; their lines are written.
      ValueError: the batch size is below 1, or a question has too many options.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")
    prompts = {question.index: strategy.prompt(question) for question in questions}
    name = claim(out, run)
    done = collect(out, name)
    todo = pending(chunk(questions, *part), done, retry)
    written = failing = 0
    if not todo:
        return 0
    with ChunkFile(out, *part) as file:
        for batch in _batches(_ahead(_loader(sources), todo), batch_size):
            records = []
            for (question, attempt), _ in batch:
                records.append(
                    {**blank(question, name, attempt), "prompt": prompts[question.index]}
                )
            _answer(batch, records, answerer, strategy)
            file.write(records)
            written += len(records)
            for record in records:
                failing = failing + 1 if record["status"] == "gen_error" else 0
            if failing >= _HOPELESS:
                raise BrokenModel(
                    f"the model failed {failing} times in a row, last with {records[-1]['error']}: "
                    "mend it and run again with --retry-failures"
                )
            progress(written, len(todo))
    return written


_Loaded = tuple[tuple[Question, int], "tuple[Visual, str] | VisualError"]


def _loader(
    sources: VisualSource,
) -> Callable[[tuple[Question, int]], tuple[Visual, str] | VisualError]:
    def load(item: tuple[Question, int]) -> tuple[Visual, str] | VisualError:
        try:
            return sources.load(item[0])
        except VisualError as error:
            return error

    return load


def _ahead(
    load: Callable[[tuple[Question, int]], tuple[Visual, str] | VisualError],
    items: Sequence[tuple[Question, int]],
    ahead: int = 4,
) -> Iterator[_Loaded]:
    """Loads the next visuals while the model works on these; one thread, so in order."""
    waiting: collections.deque[tuple[tuple[Question, int], Future]] = collections.deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(load, item)))
                if len(waiting) > ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _batches(items: Iterable[_Loaded], size: int) -> Iterator[list[_Loaded]]:
    batch: list[_Loaded] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _answer(
    batch: Sequence[_Loaded], records: Sequence[Record], answerer: Answerer, strategy: Strategy
) -> None:
    """Completes the records of a batch."""
    asked: list[tuple[Question, Record, Asked]] = []
    for ((question, _), loaded), record in zip(batch, records, strict=True):
        if isinstance(loaded, VisualError):
            record.update(status="decode_error", error=str(loaded))
            continue
        visual, record["source"] = loaded
        asked.append((question, record, Asked(record["prompt"], visual, question.letters)))
    ask = answerer.loglik if strategy.read is None else answerer.generate
    for question, record, answer in _asked(asked, ask):
        if isinstance(answer, str):
            record.update(status="gen_error", error=answer)
        else:
            record.update(visual_tokens=answer.visual_tokens, text_tokens=answer.text_tokens)
            if answer.fusion is not None:
                record["fusion"] = {n: round(w, 6) for n, w in answer.fusion.items()}
            _judge(question, record, answer, strategy)


def _asked(
    asked: Sequence[tuple[Question, Record, Asked]], ask: Callable[[Sequence[Asked]], list[Answer]]
) -> Iterator[tuple[Question, Record, Answer | str]]:
    """Answers, or why there is none. A batch that fails is asked one by one: one question's fault
    is not the others'."""
    if not asked:
        return
    try:
        answers: Sequence[Answer | str] = ask([item for _, _, item in asked])
        assert len(answers) == len(asked), f"{len(answers)} answers to {len(asked)} questions"
    except EXPECTED as error:
        if len(asked) > 1:
            for one in asked:
                yield from _asked([one], ask)
            return
        answers = [f"{type(error).__name__}: {error}"]
    for (question, record, _), answer in zip(asked, answers, strict=True):
        yield question, record, answer


def _judge(question: Question, record: Record, answer: Answer, strategy: Strategy) -> None:
    if strategy.read is not None:
        assert answer.reply is not None, "generate gives a reply"
        parsed = strategy.read(answer.reply, question)
        if parsed is None:  # an open question: the reply is what there is to know
            record.update(status="ok", reply=answer.reply)
            return
        record.update(
            status="ok" if parsed.parsed else "unparsed",
            reply=answer.reply,
            prediction=parsed.option,
            correct=parsed.correct,
        )
        return
    scores = answer.scores
    assert scores is not None and len(scores) == len(question.options), "one score per option"
    if any(score != score for score in scores):
        record.update(status="gen_error", error="the model's log-probabilities are not numbers")
        return
    best = max(range(len(scores)), key=scores.__getitem__)
    record.update(
        status="ok",
        scores=list(scores),
        prediction=best,
        correct=best == question.answer,
        tie=sum(score == scores[best] for score in scores) > 1,
    )
