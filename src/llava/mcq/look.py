"""What a saved model reads of a video: known from its configuration, before weights are loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.frame_visuals import FrameRule


@dataclasses.dataclass(frozen=True)
class Look:
    """What a model reads of a video.

    Attributes:
      patches: those that the codec chose, from assets or packed.
      frames: that its encoders of frames share; None: it has none.
    """

    patches: bool = True
    frames: FrameRule | None = None


def look_of(model: str | Path) -> Look:
    """What a saved model reads, from its config.json alone: before its weights are loaded.

    Raises:
      ValueError: its encoders are none that this version knows.
    """
    path = Path(model) / "config.json"
    stated = json.loads(path.read_text()) if path.is_file() else {}
    if not stated.get("encoders"):
        return Look()
    from ..model.config import LlavaConfig

    config = LlavaConfig.from_pretrained(model)
    return Look(config.patch_size is not None, config.frame_rule)
