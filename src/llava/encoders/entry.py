"""One of a model's encoders: its kind, its configuration, and what it is fed.

{"name": "image", "kind": "siglip", "config": {"model_type": "siglip_vision_model", ...},
 "frames": 16, "select_layer": -2, "image_size": 224, "resize": "squash", ...}
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.configuration_utils import PretrainedConfig

from ...sequence import NUM_SLOTS
from .encode import FrameInput
from .frames import RESIZES
from .registry import config_of, spec_of
from .spec import EncoderSpec, Layer

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
OF_FRAMES = ("frames", "image_size", "resize", "chunk")
"""Fields that only encoders of frames have."""


@dataclasses.dataclass(frozen=True)
class EncoderEntry:
    """What a model's configuration says about one encoder.

    Attributes:
      name: of its parameters, weights and figures.
      kind: see `registry`.
      config: of the tower.
      select_layer: index into its hidden states, or "norm".
      image_mean, image_std: of the pixels that it expects, per channel of RGB in 0..1.
      frames: that it sees of a video; 0 where it reads patches. An image is one frame.
      image_size: side of its frames in pixels; 0 where it reads patches.
      resize: "squash" or "crop", how frames become square; "" where it reads patches.
      chunk: frames that are encoded together; None: as its own configuration says.
    """

    name: str
    kind: str
    config: PretrainedConfig
    select_layer: Layer
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    frames: int = 0
    image_size: int = 0
    resize: str = ""
    chunk: int | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any] | EncoderEntry) -> EncoderEntry:
        """An entry from its fields; those that are left out are as the kind has them.

        Raises:
          ValueError: a field is unknown, missing or out of range; the message names the encoder.
        """
        if isinstance(given, EncoderEntry):
            return given
        name = given.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"an encoder has name = {name!r}: give a name of small letters, digits, - and _"
            )
        if hasattr(nn.ModuleDict, name) or hasattr(nn.ParameterDict, name):
            raise ValueError(f"an encoder has name = {name!r}, which torch takes: choose another")
        try:
            return cls._of(dict(given))
        except ValueError as error:
            raise ValueError(f"encoder {name}: {error}") from error

    @classmethod
    def _of(cls, given: dict[str, Any]) -> EncoderEntry:
        known = {field.name for field in dataclasses.fields(cls)}
        if strange := given.keys() - known:
            raise ValueError(f"has no field {min(strange)!r}: there are {', '.join(sorted(known))}")
        if absent := {"kind", "config"} - given.keys():
            raise ValueError(f"lacks {min(absent)}")
        given = {key: value for key, value in given.items() if value is not None}
        spec, config = spec_of(given["kind"]), config_of(given["kind"], given["config"])
        fields = {
            "select_layer": spec.select_layer,
            "image_mean": spec.image_mean,
            "image_std": spec.image_std,
        }
        if spec.input == "frames":
            fields |= {"frames": spec.native_frames, "image_size": spec.size(config)}
            fields |= {"resize": spec.resize, "chunk": None}
        elif odd := [name for name in OF_FRAMES if name in given]:
            raise ValueError(f"{odd[0]} has no effect on an encoder that reads patches: leave it")
        fields |= {**given, "config": config}
        for name in ("image_mean", "image_std"):
            fields[name] = tuple(fields[name])
        entry = cls(**fields)
        entry._check()
        return entry

    def to_dict(self) -> dict[str, Any]:
        """As `of` takes it, in JSON's types."""
        config = self.config.to_dict()
        config.pop("transformers_version", None)
        out = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        out |= {"config": config, "image_mean": [*self.image_mean]}
        out["image_std"] = [*self.image_std]
        dropped = OF_FRAMES if self.reads_patches else ()
        return {n: v for n, v in out.items() if v is not None and n not in dropped}

    @property
    def summary(self) -> dict[str, Any]:
        """`to_dict` without the tower's configuration."""
        return {name: value for name, value in self.to_dict().items() if name != "config"}

    @property
    def spec(self) -> EncoderSpec:
        return spec_of(self.kind)

    @property
    def reads_patches(self) -> bool:
        """Whether it reads the patches that the codec chose, and not frames."""
        return self.spec.input == "patches"

    @property
    def width(self) -> int:
        """Width of its features."""
        return self.config.hidden_size

    @property
    def clip(self) -> int:
        """Frames that it encodes together; 1: each by itself."""
        return self.spec.chunk_of(self.config) if self.chunk is None else self.chunk

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of features of a frame."""
        return self.spec.grid(self.config, self.image_size)

    def steps(self, shared: int) -> int:
        """Time steps of its features of a visual of `shared` frames; 1 of an image."""
        return self.spec.steps(self.frames) if shared > 1 else 1

    @property
    def frame_input(self) -> FrameInput:
        """As `encode_frames` takes it."""
        return FrameInput(
            self.frames,
            self.image_size,
            self.image_mean,
            self.image_std,
            self.select_layer,
            self.chunk,
        )

    def _check(self) -> None:
        self.spec.check_layer(self.config, self.select_layer)
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} = {getattr(self, name)} must be three numbers")
        if self.reads_patches:
            return
        for name in ("frames", "image_size", "chunk"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} = {value!r} must be a positive integer")
        if self.spec.steps(self.frames) > NUM_SLOTS:
            raise ValueError(
                f"frames = {self.frames} makes {self.spec.steps(self.frames)} time steps: the time "
                f"axis has {NUM_SLOTS}"
            )
        if self.clip % self.spec.tubelet or self.frames % self.spec.tubelet:
            raise ValueError(
                f"frames = {self.frames} and chunk = {self.clip} must be multiples of "
                f"{self.spec.tubelet}, the frames of a time step"
            )
        if self.resize not in RESIZES:
            raise ValueError(f"resize = {self.resize!r} must be one of {', '.join(RESIZES)}")
        self.grid  # raises where the size holds no patch  # noqa: B018
