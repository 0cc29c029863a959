"""Requests of lmms-eval's simple interface as conversations with visuals.

Nothing of lmms-eval is imported: a request is its `args`, a document what `task_dict` gives.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ...codec.image import upright_rgb
from ...codec.llava.rows import IMAGE_TOKEN, VIDEO_TOKEN
from ..data.frame_visuals import FrameRule, shown_image, shown_picture, with_frames
from ..data.visuals import ImageRule
from ..templates import PLACEHOLDER
from .shown import Shown
from .tasks import benchmark_of

if TYPE_CHECKING:
    from ..data.visuals import Visual

MAX_NEW_TOKENS = 1024
"""Of a reply to a task that states none; as the published evaluation has it."""

_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
# Greedy generation does not read them; the last is a wish of one model, whose images are cut up.
_IDLE = {"top_p", "top_k", "image_aspect_ratio"}
_DECODING = ("do_sample", "temperature", "num_beams")
_READ = {*_DECODING, "max_new_tokens", "until"}


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One question.

    Attributes:
      task, split, doc_id: the document.
      context: text of the question.
      doc_to_visual: what it shows, as a function of the document; None for text alone.
      doc: the document.
      options: `generation_kwargs`, or None.
      target: the answer that is scored, for `loglikelihood`.
    """

    task: str
    split: str
    doc_id: Any
    context: str
    doc_to_visual: Any
    doc: Any
    options: Mapping[str, Any] | None = None
    target: str | None = None

    @property
    def place(self) -> tuple[str, str, Any]:
        """Its document."""
        return self.task, self.split, self.doc_id

    @property
    def max_new_tokens(self) -> int:
        """Most tokens of its reply."""
        return int((self.options or {}).get("max_new_tokens", MAX_NEW_TOKENS))

    def cut(self, reply: str) -> str:
        """A reply up to where the task says it ends."""
        until = (self.options or {}).get("until") or []
        for end in [until] if isinstance(until, str) else until:
            if end:
                reply = reply.split(end)[0]
        return reply

    def visuals(self) -> list[Any]:
        """What it shows: paths and pictures.

        Raises:
          ValueError: something that is neither.
        """
        shown = self.doc_to_visual(self.doc) if callable(self.doc_to_visual) else None
        found = list(_flat(shown))
        for item in found:
            if not _is_picture(item) and not isinstance(item, str | os.PathLike):
                raise ValueError(
                    f"task {self.task}, document {self.doc_id}: shows a {type(item).__name__}; "
                    "only videos and images (paths or pictures) can be shown"
                )
        return found

    def videos(self) -> list[str]:
        """Paths of the videos that it shows; pictures of tasks of images are not opened for it."""
        benchmark = benchmark_of(self.task)
        if benchmark is not None and not benchmark.has_videos:
            return []
        return [str(v) for v in self.visuals() if not _is_picture(v) and not _is_image_path(v)]


def generation_request(args: Sequence[Any], task_dict: Mapping[str, Any]) -> Request:
    """Of the arguments of `generate_until`.

    Raises:
      ValueError: the task asks for what a greedy reply is not.
    """
    context, options, doc_to_visual, doc_id, task, split = args
    options = dict(options or {})
    unknown = sorted(options.keys() - _READ - _IDLE)
    if unknown:
        raise ValueError(f"task {task}: generation_kwargs has {', '.join(unknown)}, unknown here")
    samples = options.get("do_sample")
    if samples is None:
        samples = (options.get("temperature") or 0) > 0
    if samples or (options.get("num_beams") or 1) != 1:
        told = ", ".join(f"{n} = {options[n]}" for n in _DECODING if n in options)
        raise ValueError(
            f"task {task} wants {told}, but replies are greedy: say --gen_kwargs "
            "do_sample=False,temperature=0,num_beams=1"
        )
    doc = task_dict[task][split][doc_id]
    return Request(task, split, doc_id, context, doc_to_visual, doc, options)


def scoring_request(args: Sequence[Any], task_dict: Mapping[str, Any]) -> Request:
    """Of the arguments of `loglikelihood`; the blank in front of an answer is the interface's."""
    context, target, doc_to_visual, doc_id, task, split = args
    doc = task_dict[task][split][doc_id]
    text = str(target(doc) if callable(target) else target).strip()
    if not text:
        raise ValueError(f"task {task}, document {doc_id}: the answer to be scored is empty")
    return Request(task, split, doc_id, context, doc_to_visual, doc, target=text)


def conversation_of(
    request: Request,
    shown: Shown,
    images: ImageRule,
    patch: int,
    frames: FrameRule | None = None,
) -> tuple[list[dict[str, str]], list[Visual], list[str]]:
    """Turns and visuals of a request, and where its visuals come from.

    A visual stands in front of the text, as in training and in our own runner, unless the text has
    an `<image>` or `<video>` for each.

    Raises:
      ValueError: the text has placeholders for other visuals.
      VisualError: a video cannot be shown.
      MediaError, OSError: an image cannot be read.
    """
    visuals, sources, tokens = [], [], []
    for item in request.visuals():
        if _is_picture(item):
            picture = upright_rgb(item)
            visual, source = shown_picture(picture, images, patch, frames), "image"
        elif _is_image_path(item):
            visual, source = shown_image(str(item), images, patch, frames), "image"
        else:
            visual, source = shown.load(str(item))
            visual = with_frames(visual, str(item), frames)
        visuals.append(visual)
        sources.append(source)
        tokens.append(IMAGE_TOKEN if source == "image" else VIDEO_TOKEN)
    text = request.context
    placed = PLACEHOLDER.findall(text)
    if placed and placed != tokens:
        raise ValueError(
            f"the text has {len(placed)} placeholders ({', '.join(placed[:4])}), the document "
            f"shows {len(tokens)} visuals"
        )
    if not placed:
        text = "".join(f"{token}\n" for token in tokens) + text
    turns = [{"from": "human", "value": text}]
    if request.target is not None:
        turns.append({"from": "gpt", "value": request.target})
    return turns, visuals, sources or ["text"]


def _flat(shown: Any) -> Iterator[Any]:
    if isinstance(shown, list | tuple):
        for item in shown:
            yield from _flat(item)
    elif shown is not None:
        yield shown


def _is_picture(item: Any) -> bool:
    from PIL import Image

    return isinstance(item, Image.Image)


def _is_image_path(item: Any) -> bool:
    return PurePath(item).suffix.lower() in _IMAGES
