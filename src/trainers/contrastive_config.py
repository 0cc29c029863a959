"""The configuration of image-text training: two towers, a caption decoder, pairs, evaluations.

`ContrastiveConfig.from_dict` turns a config file's values into the frozen dataclasses below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ..config_values import build, require, unknown_field
from ..data.augment import AugmentConfig, kept_patches
from ..data.pairs import PairTextConfig
from ..models.captioning import CaptionConfig
from ..models.clip import ClipConfig
from ..models.config import ViTConfig
from ..models.openvision import OpenVisionConfig
from ..models.text import TextConfig
from .run_config import GroupConfig, RunConfig

TOWERS = {"openvision": OpenVisionConfig, "codecvit": ViTConfig}
"""Image towers by the name that `config.model.tower` gives them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSourceConfig:
    """Pairs of images, or of packed videos, with texts.

    Attributes:
      pairs: where they lie, KIND:PATH (docs/data.md), or several joined by "+", which are mixed.
      preset, columns: which columns of them are what, as for `codecvit pack-pairs`.
      mix_weights: share of each of several, up to a common factor; () goes by their sizes.
      batch_size: pairs of this source in one optimiser step, over all devices; each is a negative
        of the others.
      budget: tokens per row; 0 takes what an image of `image_size` has.
      image_size: side in pixels at which images are seen.
      augment: random crops, flips, colours.
      mask_ratio: share of an image's patches that is left out, drawn anew for each example.
      loss_weight: weight of this source's loss in the sum.
      loader_workers: worker processes that decode; 0 decodes in the training process.
    """

    pairs: str
    batch_size: int
    image_size: int
    preset: str = "default"
    columns: str = ""
    budget: int = 0
    augment: AugmentConfig = AugmentConfig()
    mix_weights: tuple[float, ...] = ()
    mask_ratio: float = 0.0
    loss_weight: float = 1.0
    loader_workers: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveLossConfig:
    """The loss between the embeddings of images and texts; `config.model.loss` says which.

    Attributes:
      weight: in the sum of losses.
      chunks: a device compares its texts with the images of the global batch in this many pieces.
      max_scale: largest factor from cosine to logit.
    """

    weight: float = 1.0
    chunks: int = 1
    max_scale: float = 100.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptioningLossConfig:
    """The loss of the caption decoder.

    Attributes:
      weight: in the sum of losses; OpenVision's 2.
      chunk: tokens of a device whose logits exist at one time.
      keep_ratio: share of the image tokens that the decoder reads, drawn anew in each step
        (OpenVision 2: 0.25 to 0.35; arXiv 2509.01644).
    """

    weight: float = 2.0
    chunk: int = 1024
    keep_ratio: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """Zero-shot classification inside training (docs/image_text_evaluation.md).

    Attributes:
      pairs: the test images, KIND:PATH; the first text of each is its class: a name, a WordNet id
        or a number.
      classes: file of class names, a line each, aliases separated by commas.
      preset, columns: which column holds the class.
      dataset: "imagenet" checks that the file names its 1,000 classes.
      templates: name of a template set or a file of them.
      aliases: all names of a class are asked for, or the first alone.
      canonical: prompts in lower case without punctuation, as OpenVision's evaluation has them.
      every_steps: cadence; the last step always evaluates.
      batch_size: images or texts embedded at once, over all devices.
    """

    pairs: str
    classes: str
    preset: str = "imagenet"
    columns: str = ""
    dataset: str = ""
    templates: str = "imagenet-7"
    aliases: bool = True
    canonical: bool = False
    every_steps: int = 1000
    batch_size: int = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Image-text retrieval inside training: recall at 1, 5 and 10 both ways.

    Attributes:
      pairs: the test pairs, KIND:PATH; all texts of an image count as its captions.
      preset, columns: which columns hold the captions.
      every_steps, batch_size: as for ZeroShotConfig.
    """

    pairs: str
    preset: str = "coco"
    columns: str = ""
    every_steps: int = 1000
    batch_size: int = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(RunConfig):
    """An image-text run; what it shares with other runs stands in `RunConfig`.

    Attributes:
      model: image tower, text tower and decoder; in the file `model.tower`, `model.loss`, and
        `model.vision`, `model.text`, `model.decoder`, each with its `variant` and any field of its
        config.
      sources: named pairs; every step takes one batch of each.
      tokenizer: vocabulary or tokenizer file (docs/data.md).
      text: which texts of a pair are read, and their lengths.
      contrastive, captioning: the losses; the text tower and the decoder say which are there.
      groups: how text tower (`text`), decoder (`decoder`), image head (`image_head`) and scale
        (`logit_scale`, `logit_bias`) differ from the encoder in the optimiser.
      zero_shot, retrieval: by name, evaluations inside training.
    """

    model: ClipConfig
    sources: Mapping[str, PairSourceConfig]
    tokenizer: str
    text: PairTextConfig = PairTextConfig()
    contrastive: ContrastiveLossConfig = ContrastiveLossConfig()
    captioning: CaptioningLossConfig = CaptioningLossConfig()
    groups: Mapping[str, GroupConfig] = dataclasses.field(default_factory=dict)
    zero_shot: Mapping[str, ZeroShotConfig] = dataclasses.field(default_factory=dict)
    retrieval: Mapping[str, RetrievalConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise ValueError("config.sources is empty: name at least one set of pairs")
        for name, source in self.sources.items():
            self._check_source(f"config.sources.{name}", source)
        for name, group in self.groups.items():
            if name not in self.parts:
                raise ValueError(
                    f"config.groups names {name!r}; this run trains {', '.join(self.parts)}"
                )
            group.check(f"config.groups.{name}")
        require(
            0 < self.captioning.keep_ratio <= 1,
            "config.captioning.keep_ratio",
            self.captioning.keep_ratio,
        )
        for part in self.init.parts:
            if part not in self.parts:
                raise ValueError(
                    f"config.init.parts names {part!r}; beside the encoder there are "
                    f"{', '.join(self.parts)}"
                )

    @property
    def parts(self) -> tuple[str, ...]:
        """What is trained beside the encoder."""
        parts = []
        if self.model.text is not None:
            parts += ["image_head", "text", "logit_scale"]
            parts += ["logit_bias"] * (self.model.loss == "sigmoid")
        return tuple(parts + ["decoder"] * (self.model.decoder is not None))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ContrastiveConfig:
        """Checks a config file's values and freezes them.

        Args:
          values: nested mapping with the fields of the classes above.

        Raises:
          ValueError: a field is unknown, missing, of the wrong type or out of range.
        """
        values = dict(values)
        if "model" not in values:
            raise ValueError("config.model is missing: give at least model.vision.variant")
        return build(cls, {**values, "model": clip_config(values["model"])}, "config")

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as JSON types; `from_dict` takes it back."""
        values = dataclasses.asdict(self)
        kind = type(self.model.vision)
        tower = next(name for name, known in TOWERS.items() if known is kind)
        values["model"]["tower"] = tower
        return values

    def _check_source(self, path: str, source: PairSourceConfig) -> None:
        require(source.batch_size >= 1, f"{path}.batch_size", source.batch_size)
        require(0 <= source.mask_ratio < 1, f"{path}.mask_ratio", source.mask_ratio)
        require(
            source.image_size > 0 and source.image_size % self.model.vision.patch == 0,
            f"{path}.image_size",
            source.image_size,
            f"it must be a multiple of the patch {self.model.vision.patch}: other pixels would be "
            "cut away",
        )


def source_budget(config: ContrastiveConfig, name: str) -> int:
    """Tokens per row of a source: what is given, else the patches that an image keeps."""
    source = config.sources[name]
    patches = (source.image_size // config.model.vision.patch) ** 2
    return source.budget or kept_patches(patches, source.mask_ratio)


def clip_config(values: Mapping[str, Any] | ClipConfig) -> ClipConfig:
    """A ClipConfig from a config file's `model` section or from a checkpoint's resolved one.

    Raises:
      ValueError: a tower, a variant or a field is unknown.
    """
    if isinstance(values, ClipConfig):
        return values
    values = dict(values)
    tower = values.pop("tower", "openvision")
    if tower not in TOWERS:
        raise ValueError(f"config.model.tower = {tower!r} must be one of {', '.join(TOWERS)}")
    if values.get("vision") is None:
        raise ValueError("config.model.vision is missing: give at least its variant, e.g. 'B/16'")
    vision = values["vision"] = _part("config.model.vision", TOWERS[tower], values["vision"])
    text = decoder = None
    if values.get("text") is not None:
        text = values["text"] = _part("config.model.text", TextConfig, values["text"])
        values["embed_dim"] = text.embed_dim
    if values.get("decoder") is not None:
        widths = {"image_width": vision.width, "text_width": text and text.width}
        decoder = {**values["decoder"], **widths}
        if decoder.get("kind") == "causal":
            del decoder["text_width"]
        values["decoder"] = _part("config.model.decoder", CaptionConfig, decoder)
    return build(ClipConfig, values, "config.model")


def _part(path: str, kind: Any, values: Mapping[str, Any]) -> Any:
    values = {key: value for key, value in dict(values).items() if value is not None}
    variant = values.pop("variant", None)
    if values.get("dtype") == "auto":
        values["dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    known = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise unknown_field(f"{path}.{key}", key, ["variant", *known])
    return kind(**values) if variant is None else kind.from_variant(variant, **values)
