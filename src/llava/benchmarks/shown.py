"""What the requests of an evaluation show, decided before the first is asked, and counted.

A request shows a video, images, or nothing. Videos come from assets; without assets the run stops,
or they are packed, or shown as whole frames, whichever was asked for.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ...codec.llava.options import MosaicOptions
from ...codec.llava.packs import EXPECTED, PackTask, make_pack
from ..mcq.sources import VisualError, options_of
from .roots import Asset, AssetRoots
from .settings import Settings
from .tasks import benchmark_of, hf_home, video_folder

if TYPE_CHECKING:
    from ..data.visuals import Visual

_SHOWN = 50
_KEPT = 4  # videos; the questions about one mostly follow each other


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a video comes from.

    Attributes:
      source: "hit", its asset; "packed" now; "miss", whole frames in place of the asset; "failed",
        it cannot be shown.
      asset: of a hit.
      reason: of a failure.
    """

    source: str
    asset: Asset | None = None
    reason: str = ""


class Shown:
    """Gives videos to a model.

    Args:
      settings: how the run was set up.
      patch: side of the encoder's patch.
      expected: hash of the mosaic options that the model was trained with; None if it states none.

    Raises:
      ValueError: a folder of assets is not there; or there is none, and nothing else was asked for.
    """

    def __init__(self, settings: Settings, patch: int, expected: str | None = None) -> None:
        self._settings, self._patch, self._expected = settings, patch, expected
        self._roots = AssetRoots(settings.assets, settings.video_roots)
        self._options: MosaicOptions | None = None
        self._hash: str | None = None
        self._places: dict[str, _Place] = {}
        self._kept: collections.OrderedDict[str, Visual] = collections.OrderedDict()

    def plan(self, videos: Iterable[tuple[str, str]]) -> None:
        """Decides where videos come from; those of earlier calls stay.

        Args:
          videos: (task, path).

        Raises:
          ValueError: assets are missing and `on_miss` is "error"; assets that are not whole, or of
            another file; options of assets, settings and model that differ.
        """
        wrong: dict[str, str] = {}
        found: dict[str, _Place] = {}
        for task, path in videos:
            video = os.path.abspath(path)  # noqa: PTH100 (links stay as they are)
            if video in found or video in self._places or video in wrong:
                continue
            try:
                found[video] = self._place(task, video)
            except (ValueError, OSError) as error:  # a PackError, or a meta.json that is none
                wrong[video] = f"mismatch: {error}"
        missing = [v for v, place in found.items() if place.source == "miss"]
        if self._settings.on_miss == "error":
            wrong.update(dict.fromkeys(missing, "no asset"))
        if wrong:
            told = "\n".join(f"  {v}: {reason}" for v, reason in sorted(wrong.items())[:_SHOWN])
            more = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            where = ", ".join(self._roots.folders) or "no folder: option assets names none"
            raise ValueError(
                f"{len(wrong)} of {len(found) + len(wrong) - len(missing)} videos have no usable "
                f"assets (looked in {where}):\n{told}{more}\nMake them with `codecvit llava "
                "benchmark TASK`, or say on_miss=pack"
                if self._settings.on_miss == "error"
                else f"{len(wrong)} assets don't fit their videos:\n{told}{more}\nMake them again"
            )
        self._agree(found.values(), bool(missing))
        if self._settings.on_miss == "pack":
            found.update({video: _Place("packed") for video in missing})
        self._places.update(found)

    def load(self, path: str) -> tuple[Visual, str]:
        """The visual of a planned video, and its source.

        Raises:
          VisualError: it cannot be shown.
        """
        video = os.path.abspath(path)  # noqa: PTH100
        place = self._places[video]
        self._tell(video, place)
        if place.source == "failed":
            raise VisualError(place.reason)
        visual = self._kept.get(video)
        if visual is None:
            try:
                visual = self._read(video, place)
            except EXPECTED as error:
                raise VisualError(f"{video}: {type(error).__name__}: {error}") from error
            self._kept[video] = visual
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(video)
        return visual, place.source

    def describe(self) -> dict[str, Any]:
        """What decides the visuals, as JSON."""
        sources = {place.source for place in self._places.values()}
        made = self._options if {"packed", "miss"} & sources else None
        return {
            "assets": self._roots.folders,
            "on_miss": self._settings.on_miss,
            "config_hash": self._hash,
            "options": None if made is None else made.describe(),
            "frames": self._frames().describe() if "miss" in sources else None,
            "videos": dict(collections.Counter(p.source for p in self._places.values())),
        }

    def _place(self, task: str, video: str) -> _Place:
        benchmark = benchmark_of(task)
        known = benchmark is not None and benchmark.has_videos
        root = video_folder(benchmark, hf_home()) if benchmark is not None and known else None
        asset = self._roots.find(video, root)
        if asset is not None:
            return _Place("hit", asset)
        reason = self._roots.failure(video, root)
        if reason is not None:
            return _Place("failed", reason=f"packing gave it up: {reason}")
        return _Place("miss")

    def _agree(self, places: Iterable[_Place], packing: bool) -> None:
        """Assets, settings, packing and model must speak of the same options."""
        hashes: dict[str, str] = {}
        if self._hash is not None:
            hashes[self._hash] = "earlier requests"
        for place in places:
            asset = place.asset
            if asset is None:
                continue
            differing = self._settings.differing(asset.config)
            if differing:
                raise ValueError(f"{asset.folder}: {'; '.join(differing)}")
            hashes.setdefault(asset.config_hash, asset.folder)
            if self._options is None and "selection" in asset.config:
                self._options = options_of(asset.config)
        if packing:
            self._options = self._options or self._settings.apply(MosaicOptions())
            hashes.setdefault(self._options.hash, "packing on the fly")
        if self._expected is not None and hashes:
            hashes.setdefault(self._expected, "the model's training")
        if len(hashes) > 1:
            told = "; ".join(f"{name}: {where}" for name, where in sorted(hashes.items()))
            raise ValueError(
                f"videos would be shown with different options ({told}), but a model has to see "
                "what it was trained on: make the assets with the options of its training data"
            )
        self._hash = next(iter(hashes), None)

    def _frames(self) -> MosaicOptions:
        """One whole frame in the place of each mosaic: as many tokens as the asset would have."""
        assert self._options is not None, "planned"
        return dataclasses.replace(self._options, num_frames=self._options.num_images)

    def _read(self, video: str, place: _Place) -> Visual:
        from ..data.assets import mosaic_visual

        if place.asset is not None:
            return mosaic_visual(place.asset.folder, self._patch)
        assert self._options is not None, "planned"
        options = self._frames() if place.source == "miss" else self._options
        # By way of files: JPEG changes pixels, and these have to be those of stored assets.
        with tempfile.TemporaryDirectory(prefix="codecvit-") as folder:
            make_pack(options, PackTask(video, video, folder, "mosaic", evaluation=True))
            return mosaic_visual(folder, self._patch)

    def _tell(self, video: str, place: _Place) -> None:
        debug = self._settings.debug
        if debug == "all" or (debug == "1" and place.source != "hit"):
            folder = place.asset.folder if place.asset else place.reason
            print(f"codecvit_llava {place.source.upper()} {video} {folder}", file=sys.stderr)
