"""Configuration of a video language model: encoder, language model, and what lies between them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig
from transformers.configuration_utils import PretrainedConfig

from ...convert.hf.image_processing_onevision_encoder import CLIP_MEAN, CLIP_STD
from ..data.frame_visuals import FrameRule
from ..data.visuals import ImageRule
from ..encoders.entry import EncoderEntry
from ..encoders.frames import shared_count
from ..templates import TEMPLATES
from .encoder_checks import FUSION_QUERY, check_encoders
from .fusion import TOKENS, WEIGHTED
from .vision import vision_config_of

VISUAL_TOKEN = -200
"""The id that stands in `input_ids` where a visual token goes, as in LLaVA; no tokenizer has it."""

POOLING = ("3davg", "3dconv", "attentive")
"""Projectors, before their "+", that always bring a visual to the cells of `pool`."""

PROJECTOR = re.compile(r"(?:(?:3davg|3dconv|attentive)\+)?(?:linear|mlp[1-9]\d*x_gelu)|merger")


class LlavaConfig(PretrainedConfig):
    """Everything that a checkpoint must say about itself; nothing is passed again at inference.

    Args:
      vision_config: of the one encoder that reads patches, as a configuration or a dict with its
        `model_type`. Either this or `encoders`.
      text_config: of any causal language model of transformers, likewise.
      projector: "linear", "mlp{k}x_gelu" (k linear layers), either of them behind "3davg+",
        "3dconv+" or "attentive+", or "merger" (2 x 2 neighbours become one token).
      pool: cells (t, h, w) that a pooled visual has at most; an axis never gets more cells than the
        visual has steps on it (an image has one step in time).
      pool_level: 0, or p: the cells on h and w are max(1, round(rows/p)) and likewise for columns,
        in place of those of `pool`; it also makes "linear" and "mlp{k}x_gelu" pool.
      pool_empty: what a cell without a patch becomes: "carry", the same cell of the nearest earlier
        step; "drop", no token; "learned", one learned vector.
      pool_first: pool before the projection (MERV), not behind it (VideoGPT+).
      position_embedding: "none", or "sincos": a (t, h, w) code is added to the features through a
        learned map that starts at zero.
      vision_select_layer: index into the encoder's hidden states: -1 after the last block, -2
        before it.
      timestamps: a group of visual tokens follows its time as text.
      splice: where visual tokens go: "placeholder", where `<image>` and `<video>` stand;
        "after_bos", before all text, but behind its BOS token if it begins with one (MERV).
      template: name of the conversation template, see `templates.TEMPLATES`.
      image_size, max_pixels: how large images are read, see `visuals.ImageRule`.
      assets_hash: of the options by which the mosaics were made that it was trained on, or None;
        evaluation refuses others.
      image_mean, image_std: of the pixels that the encoder expects, per channel of RGB in 0..1.
      encoders: of a model of several encoders, or of one that reads frames: an `EncoderEntry` each,
        or its fields. At most one reads patches. Each has its own layer, mean and deviation.
      fusion: how their tokens become one visual's, see `fusion.Fusion`.
      fusion_bias: "score" and "mha_compat" get a learned number per encoder besides.
      fusion_query: width of the query of "mha_compat".

    Raises:
      ValueError: a field has a value that no checkpoint can have; the message names it.
    """

    model_type = "codecvit_llava"
    sub_configs = {"vision_config": PretrainedConfig, "text_config": AutoConfig}
    has_no_defaults_at_init = True

    def __init__(
        self,
        vision_config: dict[str, Any] | PretrainedConfig | None = None,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        projector: str = "mlp2x_gelu",
        pool: tuple[int, int, int] = (16, 8, 8),
        pool_level: int = 0,
        pool_empty: str = "carry",
        pool_first: bool = True,
        position_embedding: str = "none",
        vision_select_layer: int = -2,
        timestamps: bool = False,
        splice: str = "placeholder",
        template: str = "chatml",
        image_size: int = 0,
        max_pixels: int = 1600 * 1600,
        assets_hash: str | None = None,
        image_mean: tuple[float, float, float] = CLIP_MEAN,
        image_std: tuple[float, float, float] = CLIP_STD,
        encoders: Sequence[Mapping[str, Any] | EncoderEntry] = (),
        fusion: str = "score",
        fusion_bias: bool = False,
        fusion_query: int = FUSION_QUERY,
        **kwargs: Any,
    ) -> None:
        if (vision_config is None) == (not encoders) or text_config is None:
            raise ValueError(
                "LlavaConfig needs vision_config and text_config: give configurations, or dicts "
                "with a model_type; or encoders in place of vision_config, not both"
            )
        self.vision_config = None if vision_config is None else vision_config_of(vision_config)
        if vision_config is None:
            # transformers 4 takes none of them for absent.
            self.sub_configs = {"text_config": AutoConfig}
        self.encoders = [EncoderEntry.of(entry) for entry in encoders]
        self.fusion = fusion
        self.fusion_bias = fusion_bias
        self.fusion_query = fusion_query
        self.text_config = _text_config(text_config)
        self.projector = projector
        self.pool = [*pool]
        self.pool_level = pool_level
        self.pool_empty = pool_empty
        self.pool_first = pool_first
        self.position_embedding = position_embedding
        self.vision_select_layer = vision_select_layer
        self.timestamps = timestamps
        self.splice = splice
        self.template = template
        self.image_size = image_size
        self.max_pixels = max_pixels
        self.assets_hash = assets_hash
        self.image_mean = [*image_mean]
        self.image_std = [*image_std]
        self._check()
        # Whether embedding and head are tied is the language model's business.
        kwargs["tie_word_embeddings"] = self.text_config.tie_word_embeddings
        super().__init__(**kwargs)

    @property
    def pools(self) -> bool:
        """Whether visuals are brought to cells; "merger" is apart."""
        return self.always_pools or self.pool_level > 0

    @property
    def always_pools(self) -> bool:
        """Whether the projector brings a visual to the cells of `pool` by itself."""
        return self.projector.startswith(POOLING)

    @property
    def attends(self) -> bool:
        """Whether learned queries look at the patches of a time cell."""
        return self.projector.startswith("attentive")

    @property
    def image_rule(self) -> ImageRule:
        """How large images are read, in training and afterwards."""
        return ImageRule(self.image_size, self.max_pixels)

    @property
    def patch_size(self) -> int | None:
        """Side in pixels of the patches that are read; None where no encoder reads patches."""
        if self.vision_config is not None:
            return self.vision_config.patch_size
        entry = self.patch_encoder
        return None if entry is None else entry.config.patch_size

    @property
    def patch_encoder(self) -> EncoderEntry | None:
        """Of `encoders` the one that reads patches, if there is one."""
        return next((entry for entry in self.encoders if entry.reads_patches), None)

    @property
    def frame_rule(self) -> FrameRule | None:
        """The frames that are decoded, once for all of `encoders`; None where none reads frames."""
        entries = [entry for entry in self.encoders if not entry.reads_patches]
        if not entries:
            return None
        count = shared_count([entry.frames for entry in entries])
        return FrameRule(count, max(entry.image_size for entry in entries), entries[0].resize)

    @property
    def encoder_names(self) -> tuple[str, ...]:
        """Names of `encoders`, in the order in which their tokens stand and weights are told."""
        entries = self.encoders
        if self.fusion == "dual_stream":
            # Frames one by one before clips and patches; the list's order decides nothing.
            entries = sorted(entries, key=lambda e: (e.reads_patches or e.clip > 1, e.name))
        return tuple(entry.name for entry in entries)

    @property
    def equal_tokens(self) -> bool:
        """Whether all encoders have to make equally many tokens of a visual."""
        return len(self.encoders) > 1 and self.fusion not in TOKENS

    @property
    def weighted(self) -> tuple[str, ...]:
        """Names of encoders that a fusion weighs against each other; () where it does not."""
        several = len(self.encoders) > 1 and self.fusion in WEIGHTED
        return self.encoder_names if several else ()

    @property
    def in_turn(self) -> bool:
        """Whether a visual's tokens are those of one encoder after another."""
        return len(self.encoders) > 1 and self.fusion in TOKENS

    def entry(self, name: str) -> EncoderEntry:
        """Of `encoders` the one of this name."""
        return next(entry for entry in self.encoders if entry.name == name)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; a model of the one encoder of `vision_config` says nothing of several."""
        out = super().to_dict()
        out.pop("sub_configs", None)
        mine = ("encoders", "fusion", "fusion_bias", "fusion_query")
        others = ("vision_config", "vision_select_layer", "image_mean", "image_std")
        for name in others if self.encoders else mine:
            out.pop(name, None)
        if self.encoders:
            out["encoders"] = [entry.to_dict() for entry in self.encoders]
        return out

    def _check(self) -> None:
        if not PROJECTOR.fullmatch(self.projector):
            raise ValueError(
                f"projector = {self.projector!r} must be linear, mlp2x_gelu (any number of "
                "layers), 3davg+, 3dconv+ or attentive+ one of these, or merger"
            )
        if len(self.pool) != 3 or not all(isinstance(n, int) and n > 0 for n in self.pool):
            raise ValueError(f"pool = {self.pool} must be three positive integers (t, h, w)")
        if not isinstance(self.pool_level, int) or self.pool_level < 0:
            raise ValueError(f"pool_level = {self.pool_level!r} must be an integer of at least 0")
        if self.pool_level and self.projector.startswith(("merger", "attentive")):
            raise ValueError(
                f"pool_level = {self.pool_level} has no effect on the projector "
                f"{self.projector!r}: set it to 0"
            )
        check_encoders(self)
        if self.patch_size is not None:
            self.image_rule.grid(1, 1, self.patch_size)  # raises
        choices = {
            "pool_empty": ("carry", "drop", "learned"),
            "position_embedding": ("none", "sincos"),
            "splice": ("placeholder", "after_bos"),
            "template": tuple(TEMPLATES),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be one of {allowed}")
        if self.timestamps and self.splice == "after_bos":
            raise ValueError(
                "timestamps = True needs splice = 'placeholder': times are text between the tokens "
                "of a visual, which after_bos puts before all text"
            )
        if self.vision_config is None:
            return
        states = self.vision_config.num_hidden_layers + 1
        if not -states <= self.vision_select_layer < states:
            raise ValueError(
                f"vision_select_layer = {self.vision_select_layer} must index one of the {states} "
                "hidden states of the encoder"
            )


def _text_config(config: dict[str, Any] | PretrainedConfig) -> PretrainedConfig:
    if isinstance(config, PretrainedConfig):
        return config
    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"text_config has model_type {model_type!r}, which this transformers does not know"
        )
    return CONFIG_MAPPING[model_type](**config)


AutoConfig.register(LlavaConfig.model_type, LlavaConfig, exist_ok=True)
