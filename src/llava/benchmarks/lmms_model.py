"""Our model behind lmms-eval's simple interface. Only lmms-eval imports this module."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lmms_eval.api.model import lmms

from ..mcq.answer import Conversation, ModelAnswerer
from ..mcq.runner import EXPECTED
from ..mcq.sources import VisualError
from ..progress import tell
from .requests import MAX_NEW_TOKENS, Request, conversation_of, generation_request, scoring_request
from .settings import read_settings
from .shown import Shown
from .tally import Tally

if TYPE_CHECKING:
    from lmms_eval.api.instance import Instance

_HOPELESS = 20  # failures of the model in a row: it is broken, not the questions
_NO_REPLY = ""


class CodecVitLlava(lmms):
    """`--model codecvit_llava --model_args pretrained=DIR,assets=DIR[:DIR...]`.

    Before the first question the assets of all videos that it will see are looked up; what a
    failing document got is the empty reply, and counted.

    Args:
      pretrained: folder of a model that `codecvit llava train` saved.
      assets: folders of assets, several with colons (or LLAVA_CODEC_OFFLINE_ROOT).
      video_root: folders that keys are relative to, where neither the assets nor the table of
        tasks knows them; several with colons.
      on_miss: "error" stops before the first question; "pack"; "frames".
      results: folder for the counts and the records of requests; "none" keeps none.
      num_images, size, patch, num_frames: of the mosaics; not stated: as the assets have them, or
        the defaults of `codecvit llava assets` where everything is packed.
      debug: 0, 1 or all: say where videos come from (or LLAVA_CODEC_DEBUG).
      dtype: name of a torch dtype.
      device: None takes this process's GPU if there is one.
      batch_size: questions at once; no answer depends on it, but for rounding.
      max_batch_size: of lmms-eval's automatic batches, which there are none of.

    Raises:
      SystemExit: an option, a variable, the model or a folder is unusable. lmms-eval catches every
        Exception, logs it and exits with 0, as if all were well.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        assets: str | None = None,
        video_root: str | None = None,
        on_miss: str = "error",
        results: str = "codecvit_llava_results",
        num_images: int | None = None,
        size: int | None = None,
        patch: int | None = None,
        num_frames: int | None = None,
        debug: str | int | None = None,
        dtype: str = "bfloat16",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        with _stopping():
            if not str(batch_size).isdecimal() or int(batch_size) < 1 or max_batch_size is not None:
                raise ValueError(
                    f"batch_size = {batch_size!r}, max_batch_size = {max_batch_size!r}: give "
                    "batch_size alone, a number from 1"
                )
            # First what is quickly told, then the model.
            settings = read_settings(
                os.environ,
                assets=assets,
                video_root=video_root,
                on_miss=on_miss,
                debug=debug,
                num_images=num_images,
                size=size,
                patch=patch,
                num_frames=num_frames,
            )
            Shown(settings, 1)
            self._device = torch.device(device or _own_device())
            if self._device.type == "cuda" and self._device.index is not None:
                torch.cuda.set_device(self._device)
            self._answerer = ModelAnswerer.load(
                pretrained, str(self._device), dtype, MAX_NEW_TOKENS
            )
            if self._answerer.patch is None:
                raise ValueError(
                    f"{pretrained} reads frames alone: this plugin shows assets; ask it by "
                    "`codecvit llava eval`"
                )
            self._shown = Shown(settings, self._answerer.patch, self._answerer.expected_hash)
            self._images = self._answerer.config.image_rule
            self._frames = self._answerer.config.frame_rule
            self._batch_size = int(batch_size)
            self._results = None if results == "none" else results
            self._tally: Tally | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval gathers counts there."""
        return self._device

    @property
    def batch_size(self) -> int:
        """Questions at once."""
        return self._batch_size

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Replies, in the order of the requests.

        Raises:
          SystemExit: an asset is missing or does not fit, or a task asks for more than greedy
            replies, and nothing was asked then; or the model failed many times in a row.
        """
        with _stopping():
            asked = [generation_request(request.args, self.task_dict) for request in requests]
        replies: list[str] = []

        def ask(batch: Sequence[Request], talks: Sequence[Conversation]) -> list[tuple[Any, dict]]:
            found = self._answerer.converse(talks, batch[0].max_new_tokens)
            cut = [request.cut(a.reply or "") for request, a in zip(batch, found, strict=True)]
            return [(text, _tokens(a, reply=text)) for text, a in zip(cut, found, strict=True)]

        for request, reply in self._run(asked, ask, _NO_REPLY):
            self.cache_hook.add_partial(
                "generate_until", (request.context, dict(request.options or {})), reply
            )
            replies.append(reply)
        return replies

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log-probability of the answer in its turn, whether it is the greedy reply) of each.

        Raises:
          SystemExit: as `generate_until`.
        """
        with _stopping():
            asked = [scoring_request(request.args, self.task_dict) for request in requests]

        def ask(batch: Sequence[Request], talks: Sequence[Conversation]) -> list[tuple[Any, dict]]:
            return [
                (
                    (answer.scores[0], greedy),
                    _tokens(answer, target=r.target, score=answer.scores[0]),
                )
                for r, (answer, greedy) in zip(batch, self._answerer.score(talks), strict=True)
            ]

        return [found for _, found in self._run(asked, ask, (float("-inf"), False))]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered: raises SystemExit."""
        raise SystemExit(
            "codecvit_llava: answers single questions; tasks of several rounds are not offered"
        )

    def _run(
        self,
        asked: Sequence[Request],
        ask: Callable[[Sequence[Request], Sequence[Conversation]], list[tuple[Any, dict]]],
        nothing: Any,
    ) -> Iterator[tuple[Request, Any]]:
        """(request, answer) in order; `nothing` for what cannot be answered."""
        with _stopping():
            self._shown.plan((r.task, video) for r in asked for video in r.videos())
        tally = self._open_tally()
        failing = done = 0
        for batch in _batches(asked, self._batch_size):
            records = [_blank(request) for request in batch]
            ready: list[tuple[int, Conversation]] = []
            for number, request in enumerate(batch):
                try:
                    turns, visuals, sources = conversation_of(
                        request, self._shown, self._images, self._answerer.patch, self._frames
                    )
                except (VisualError, OSError, ValueError) as error:
                    records[number].update(status="decode_error", error=str(error))
                else:
                    records[number]["sources"] = sources
                    ready.append((number, (turns, visuals)))
            answers = [nothing] * len(batch)
            for number, found in _attempt(batch, ready, ask):
                if isinstance(found, str):
                    records[number].update(status="gen_error", error=found)
                    failing += 1
                else:
                    answers[number] = found[0]
                    records[number].update(found[1])
                    failing = 0
            for request, record, answer in zip(batch, records, answers, strict=True):
                tally.add((*request.place, request.context, request.target), record)
                if record["error"] is not None:
                    print(f"codecvit_llava: {request.place}: {record['error']}", file=sys.stderr)
                yield request, answer
            before, done = done, done + len(batch)
            tell("codecvit_llava: {}/{} questions", done, len(asked), before)
            if failing >= _HOPELESS:
                tally.write(self._shown.describe())
                raise SystemExit(
                    f"codecvit_llava: the model failed {failing} times in a row: {record['error']}"
                )
        tally.write(self._shown.describe())

    def _open_tally(self) -> Tally:
        # The number of this process is known once lmms-eval has set it.
        if self._tally is None:
            self._tally = Tally(self._results, self.rank, {"model": self._answerer.describe()})
        return self._tally


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Ends the process with its message and status 1: see `CodecVitLlava`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise SystemExit(f"codecvit_llava: {error}") from error


def _own_device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def _batches(asked: Sequence[Request], size: int) -> Iterator[list[Request]]:
    """Neighbours with the same limit on their replies."""
    batch: list[Request] = []
    for request in asked:
        if batch and (len(batch) == size or request.max_new_tokens != batch[0].max_new_tokens):
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def _attempt(
    batch: Sequence[Request],
    ready: Sequence[tuple[int, Conversation]],
    ask: Callable[[Sequence[Request], Sequence[Conversation]], list[tuple[Any, dict]]],
) -> Iterator[tuple[int, tuple[Any, dict] | str]]:
    """Answers, or why there is none; a batch that fails is asked one by one."""
    if not ready:
        return
    try:
        found = ask([batch[number] for number, _ in ready], [talk for _, talk in ready])
    except EXPECTED as error:
        if len(ready) > 1:
            for one in ready:
                yield from _attempt(batch, [one], ask)
            return
        yield ready[0][0], f"{type(error).__name__}: {error}"
        return
    for (number, _), answer in zip(ready, found, strict=True):
        yield number, answer


def _blank(request: Request) -> dict[str, Any]:
    return {
        "task": request.task,
        "split": request.split,
        "doc_id": request.doc_id,
        "status": "ok",
        "sources": ["failed"],
        "visual_tokens": None,
        "text_tokens": None,
        "error": None,
    }


def _tokens(answer: Any, **more: Any) -> dict[str, Any]:
    return {"visual_tokens": answer.visual_tokens, "text_tokens": answer.text_tokens, **more}
