"""What decides the bytes of a pack of mosaics, and its options on the command line."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ...sequence import NUM_SLOTS
from ..arguments import add_selection_arguments, add_view_arguments, view_options
from ..clip import Clip, check_num_frames
from ..config import FIRST_FRAMES, PADDINGS, PRESETS, SelectionConfig, selection_config
from ..view import View
from .keys import config_hash
from .mosaic import JPEG_BLOCK, JPEG_QUALITY, mosaic_budget

_FORMAT = 1  # raised whenever the same options give other bytes


@dataclasses.dataclass(frozen=True)
class MosaicOptions:
    """How mosaics are made of a video.

    Attributes:
      num_frames: frames to sample, 1 to 64.
      num_images: most mosaics of a video; one with fewer samples gets one per sample.
      size: side of the view in pixels.
      patch: side of a patch, and of a mosaic's cell.
      geometry: "square", "crop", "fit" or "squash".
      sampling: evenly by "index" or by "time".
      seed: of the policy "random".
      lossless: PNG instead of JPEG.
      config: what the selection values.
      given_selection: the patches are those of stage-1 files, so nothing is scored.

    Raises:
      ValueError: an option is out of range.
    """

    num_frames: int = NUM_SLOTS
    num_images: int = 8
    size: int = 576
    patch: int = 16
    geometry: str = "square"
    sampling: str = "index"
    seed: int = 0
    lossless: bool = False
    config: SelectionConfig = PRESETS["default"]
    given_selection: bool = False

    def __post_init__(self) -> None:
        View(self.geometry, self.size, self.patch)
        if self.config.policy == "groups":
            raise ValueError(
                "policy = 'groups' makes several sequences of a video, but its mosaics are one: "
                "choose another policy"
            )
        check_num_frames(self.num_frames, self.config)
        if self.num_images < 1:
            raise ValueError(f"num_images = {self.num_images} must be at least 1")
        if self.given_selection and self.geometry != "square":
            raise ValueError(
                f"geometry = {self.geometry!r} must be 'square' with stage-1 files, which state no "
                "other"
            )

    @property
    def png(self) -> bool:
        """Mosaics are PNG: asked for, or because cells of this size would share JPEG blocks."""
        return self.lossless or bool(self.patch % JPEG_BLOCK)

    def budget(self, clip: Clip) -> int:
        """Patches that fill the mosaics of a clip."""
        return mosaic_budget(clip, self.num_images)

    def describe(self) -> dict[str, Any]:
        """Everything that decides the bytes, as JSON."""
        told = dataclasses.asdict(self)
        del told["lossless"], told["given_selection"]
        config = told.pop("config")
        # Of files that name the patches, only the padding still tells how these are laid out.
        told["selection"] = {"padding": config["padding"]} if self.given_selection else config
        if self.given_selection:
            del told["seed"]
        told["image"] = {"kind": "png"} if self.png else {"kind": "jpeg", "quality": JPEG_QUALITY}
        return {"format": _FORMAT, **told}

    @property
    def hash(self) -> str:
        """Equal for options that give equal bytes."""
        return config_hash(self.describe())


def add_mosaic_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `mosaic_options` reads."""
    group = parser.add_argument_group("mosaics")
    group.add_argument(
        "--num-images", type=int, default=8, help="mosaics of a video (default: %(default)s)"
    )
    group.add_argument(
        "--lossless",
        action="store_true",
        help=f"PNG instead of JPEG; patches that are no multiple of {JPEG_BLOCK} pixels always "
        "are PNG",
    )
    group.add_argument(
        "--first-frame",
        choices=FIRST_FRAMES,
        help="the first frame fills the first mosaic, or its patches compete (default: whole)",
    )
    group.add_argument(
        "--padding",
        choices=PADDINGS,
        help="patches without picture of --geometry square: keep them in the first frame, as "
        "published (there: zero); exclude them, mosaics then have black edges; or repeat others "
        "where too few have picture (default: keep)",
    )
    add_view_arguments(parser, size=576, patch=16, geometry="square")
    add_selection_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of policy=random (default: 0)")


def mosaic_options(args: argparse.Namespace, given_selection: bool = False) -> MosaicOptions:
    """What the options of `add_mosaic_arguments` say; raises ValueError for what cannot work."""
    config = selection_config(args.preset, args.set)
    changes = {"first_frame": args.first_frame, "padding": args.padding}
    config = dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})
    return MosaicOptions(
        num_images=args.num_images,
        seed=args.seed,
        lossless=args.lossless,
        config=config,
        given_selection=given_selection,
        **view_options(args),
    )
