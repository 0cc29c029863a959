"""Where the picture of a question comes from: stored assets, or packing on the fly.

Everything that can be known before the first question is checked before it: missing assets, and
assets that were made with other options than the model was trained with.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
import tempfile
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...codec.config import SelectionConfig
from ...codec.llava import key_of
from ...codec.llava.options import MosaicOptions
from ...codec.llava.packs import EXPECTED, PackTask, make_pack
from ...codec.llava.rows import RowError, iter_rows
from ...files import exists, is_folder, join, read_bytes
from .look import Look
from .questions import Question

if TYPE_CHECKING:
    from ..data.visuals import Visual

ON_MISS = ("error", "pack", "frames")
_SHOWN = 5


class VisualError(ValueError):
    """A video that cannot be shown; it costs its questions, not the run."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will show.

    Attributes:
      source_of: key -> "asset", "packed", "frames" (whole frames in place of mosaics), "video" for
        models that read frames alone, or "none" for videos that packing gave up on.
      reasons: key -> why, for "none".
      config_hash: of the options of all assets and of packing; None where nothing states it.
    """

    source_of: Mapping[str, str]
    reasons: Mapping[str, str]
    config_hash: str | None

    @property
    def counts(self) -> dict[str, int]:
        """Videos (or parts of them) by source."""
        return dict(sorted(collections.Counter(self.source_of.values()).items()))


class Sources:
    """Gives each question its visual.

    Args:
      folder: of the benchmark; videos and keys are relative to it.
      assets: what `llava assets` was given as --out, or None.
      options: how missing assets are packed.
      on_miss: "error"; "pack" what is missing, as the asset would be; "frames": show whole frames,
        as many as there would be mosaics, instead.
      patch: side of the encoder's patch; None takes that of the assets.
      cache: visuals kept for the next question about the same video.
      look: what the model reads; None: patches alone.

    Raises:
      ValueError: an option is out of range.
    """

    def __init__(
        self,
        folder: str,
        assets: str | None,
        options: MosaicOptions,
        on_miss: str = "error",
        patch: int | None = None,
        cache: int = 2,
        look: Look | None = None,
    ) -> None:
        if on_miss not in ON_MISS:
            raise ValueError(f"on_miss = {on_miss!r} must be one of {', '.join(ON_MISS)}")
        self._look = look or Look()
        if not self._look.patches:
            if assets is not None:
                raise ValueError(f"{assets}: the model reads frames, no assets: leave them out")
        elif assets is None and on_miss == "error":
            raise ValueError("without assets every video is a miss: give --assets, or --on-miss")
        if assets is not None and not exists(assets):
            raise ValueError(f"{assets} does not exist: make it with `codecvit llava assets`")
        self._folder, self._options, self._on_miss = str(folder), options, on_miss
        self._assets = self._base = assets
        if assets is not None and is_folder(join(assets, "assets")):
            self._base = join(assets, "assets")
        self._list = None if assets is None else join(assets, "failures.jsonl")
        self._patch, self._cache = patch, cache
        self._kept: collections.OrderedDict[str, Visual] = collections.OrderedDict()
        self._plan: Plan | None = None

    def plan(self, questions: Iterable[Question], expected: str | None = None) -> Plan:
        """Decides where each visual comes from, and refuses what would not be comparable.

        Args:
          questions: all of the benchmark, not only those of one chunk: all chunks have to decide
            alike.
          expected: hash of the options that the model was trained with; None if it states none.

        Raises:
          ValueError: assets are missing and on_miss is "error"; or assets, packing and the model
            disagree about the options.
        """
        known = self._known_failures()
        source_of: dict[str, str] = {}
        reasons: dict[str, str] = {}
        missing: dict[str, Question] = {}
        hashes: dict[str, str] = {}
        for question in questions:
            key = self.key(question)
            if key in source_of:
                continue
            if not self._look.patches:
                source_of[key] = "video"
                continue
            folder = self.asset(question)
            if folder is not None:
                source_of[key] = "asset"
                stated = _config_hash(folder)
                if stated is not None:
                    hashes.setdefault(stated, folder)
            elif key in known:
                source_of[key], reasons[key] = "none", known[key]
            else:
                source_of[key] = "frames" if self._on_miss == "frames" else "packed"
                missing[key] = question
        if missing and self._on_miss == "error":
            told = "\n".join(f"  {key}  {q.video}" for key, q in _head(missing))
            more = f"\n  and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise ValueError(
                f"{len(missing)} of {len(source_of)} videos have no assets below {self._base}:\n"
                f"{told}{more}\nMake them (`codecvit llava eval --list-videos` writes the list for "
                "`codecvit llava assets`), or say --on-miss pack"
            )
        if "packed" in source_of.values():
            hashes.setdefault(self._options.hash, "packing on the fly")
        if expected is not None and self._look.patches:
            hashes.setdefault(expected, "the model's training")
        if len(hashes) > 1:
            told = "; ".join(f"{name}: {where}" for name, where in sorted(hashes.items()))
            raise ValueError(
                f"visuals would be made with different options ({told}), but a model has to see "
                "what it was trained on: give packing the options of the assets, and make the "
                "assets with those of the training data"
            )
        self._plan = Plan(source_of, reasons, next(iter(hashes), None))
        return self._plan

    def key(self, question: Question) -> str:
        """The key of a question's assets."""
        return key_of(question.row, self._folder)

    def asset(self, question: Question) -> str | None:
        """The folder of a question's assets; None if there are none."""
        if self._base is None:
            return None
        folder = join(self._base, self.key(question))
        if exists(join(folder, "positions_thw.npy")):
            return folder
        span = question.span
        if span.end_frame is None or span.start is not None or span.end is not None:
            return None
        # A bound behind all frames that were sampled cuts nothing: the whole video's assets fit.
        folder = join(self._base, key_of({"video": question.video}, self._folder))
        if exists(join(folder, "frame_ids.npy")) and exists(join(folder, "positions_thw.npy")):
            return folder if _last_frame(folder) <= span.end_frame else None
        return None

    def load(self, question: Question) -> tuple[Visual, str]:
        """The visual of a question, and where it comes from.

        Raises:
          VisualError: the video or its assets cannot be used.
        """
        assert self._plan is not None, "plan comes first"
        key = self.key(question)
        source = self._plan.source_of[key]
        if source == "none":
            raise VisualError(f"packing gave it up: {self._plan.reasons[key]}")
        visual = self._kept.get(key)
        if visual is None:
            try:
                visual = self._read(question, source)
            except EXPECTED as error:
                raise VisualError(f"{type(error).__name__}: {error}") from error
            self._kept[key] = visual
            while len(self._kept) > self._cache:
                self._kept.popitem(last=False)
        return visual, source

    def describe(self) -> dict[str, Any]:
        """What decides the visuals, as JSON; for results."""
        assert self._plan is not None, "plan comes first"
        frames = self._on_miss == "frames"
        packed = {"packed", "frames"} & set(self._plan.source_of.values())
        rule = self._look.frames
        return {
            **({} if rule is None else {"shared_frames": dataclasses.asdict(rule)}),
            "config_hash": self._plan.config_hash,
            "frames_hash": self.packing(True).hash if frames else None,
            # What follows is told, but is not what decides: a run may go on after its missing
            # assets were made.
            "assets": self._assets,
            "options": self.packing(frames).describe() if packed else None,
            "videos": self._plan.counts,
        }

    def packing(self, frames: bool) -> MosaicOptions:
        """Options of packing; `frames` fills each mosaic with one whole frame."""
        if not frames:
            return self._options
        return dataclasses.replace(self._options, num_frames=self._options.num_images)

    def _read(self, question: Question, source: str) -> Visual:
        rule = self._look.frames
        if rule is None:
            return self._read_patches(question, source)
        from ..data.frame_visuals import frames_visual

        frames = rule.video(join(self._folder, question.video), question.span)
        if not self._look.patches:
            return frames_visual(frames)
        return dataclasses.replace(self._read_patches(question, source), frames=frames)

    def _read_patches(self, question: Question, source: str) -> Visual:
        from ..data.assets import mosaic_visual

        if source == "asset":
            folder = self.asset(question)
            if folder is None:
                raise VisualError("its assets went away during the run")
            return mosaic_visual(folder, self._patch)
        # By way of files: JPEG changes pixels, and these have to be those of stored assets.
        with tempfile.TemporaryDirectory(prefix="codecvit-") as folder:
            pack(self.packing(source == "frames"), question, self._folder, folder)
            return mosaic_visual(folder, self._patch)

    def _known_failures(self) -> dict[str, str]:
        """Videos that `llava assets` could not use: counted per question, no reason to stop."""
        if self._list is None or not exists(self._list):
            return {}
        return {
            str(row["key"]): str(row.get("reason"))
            for _, row in iter_rows(self._list)
            if not isinstance(row, RowError) and row.get("key")
        }


def pack(options: MosaicOptions, question: Question, root: str, folder: str) -> None:
    """Packs the video of a question into a folder, as `llava assets` would."""
    task = PackTask(
        video=join(root, question.video),
        name=question.video,
        folder=folder,
        stem="mosaic",
        evaluation=True,
        span=question.span,
    )
    make_pack(options, task)


def options_of(description: Mapping[str, Any]) -> MosaicOptions:
    """The options that `MosaicOptions.describe` told of.

    Raises:
      ValueError: a description of another version.
    """
    told = {name: value for name, value in description.items() if name not in ("format", "image")}
    selection = told.pop("selection", {})
    try:
        options = MosaicOptions(
            **told,
            lossless=description["image"]["kind"] == "png",
            config=SelectionConfig(**selection),
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"options of mosaics that this version does not know: {error}") from error
    return options


def video_rows(questions: Iterable[Question], root: str) -> list[dict[str, Any]]:
    """Rows for `llava assets`, one per video and part of it, in the order of the questions."""
    rows = {key_of(question.row, root): question.row for question in questions}
    return list(rows.values())


def _config_hash(folder: str) -> str | None:
    """Of the options of a pack, as the training data's are compared; None for a damaged one, which
    is found again, and counted, when it is read."""
    from ..data.assets import open_pack

    try:
        return open_pack(folder).config_hash
    except (ValueError, OSError):
        return None


def _last_frame(folder: str) -> int:
    """Number of the last frame that assets were made of."""
    content = io.BytesIO(read_bytes(join(folder, "frame_ids.npy")))
    return int(np.load(content, allow_pickle=False).max())


def _head(missing: Mapping[str, Question]) -> Iterable[tuple[str, Question]]:
    return itertools.islice(missing.items(), _SHOWN)
