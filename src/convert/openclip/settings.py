"""Sizes of an image-text model, ours and as OpenCLIP states them.

`open_clip_config.json` holds `model_cfg` and `preprocess_cfg`; a key that asks for what our models
do not compute is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...models.captioning import CaptionConfig
from ...models.clip import ClipConfig
from ...models.config import ViTConfig
from ...models.openvision import IMAGE_MEAN, IMAGE_STD, OpenVisionConfig
from ...models.text import TextConfig

_VISION = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
_TEXT = {"pool_type": "last", "no_causal_mask": True, "act_kwargs": {"approximate": "tanh"}}
_OPENVISION_PREPROCESS = {"resize_mode": "squash", "interpolation": "bilinear"}
# As the configuration of a training run calls them.
_TOWERS = {"openvision": OpenVisionConfig, "codecvit": ViTConfig}
# Keys of OpenCLIP that say nothing about what its model computes of images and ids.
_FREE = {"pos_embed_type", "patch_dropout", "block_type", "tokenizer_kwargs", "tokenizer_mode"}
_FREE |= {"hf_tokenizer_name", "pad_id", "eos_id", "output_tokens"}


@dataclasses.dataclass(frozen=True)
class Parts:
    """Sizes of an image-text model; unlike a `ClipConfig` it may have an image tower alone.

    Attributes:
      vision: OpenVision's tower or our own ViT.
      text: None without a text tower; then there is no common embedding.
      decoder: None without a caption decoder.
      bias: whether logits have a learned bias (sigmoid loss).
    """

    vision: OpenVisionConfig | ViTConfig
    text: TextConfig | None = None
    decoder: CaptionConfig | None = None
    bias: bool = False

    def clip(self) -> ClipConfig:
        """What `models.clip` computes with; ValueError without text tower and decoder."""
        return ClipConfig(
            vision=self.vision,
            text=self.text,
            decoder=self.decoder,
            embed_dim=None if self.text is None else self.text.embed_dim,
            loss="sigmoid" if self.bias else "softmax",
        )

    def settings(self) -> dict[str, Any]:
        """The fields of a training configuration's `model`."""
        fields = dataclasses.asdict(self)
        del fields["bias"]
        fields["embed_dim"] = None if self.text is None else self.text.embed_dim
        fields["tower"] = next(n for n, kind in _TOWERS.items() if type(self.vision) is kind)
        return fields | {"loss": "sigmoid" if self.bias else "softmax"}

    @classmethod
    def from_settings(cls, model: Mapping[str, Any]) -> Parts:
        """The inverse of `settings`, but for how a run spread its work."""
        vision = _TOWERS[model["tower"]]

        def build(config: Any, fields: Mapping[str, Any] | None) -> Any:
            # A matter of the run's machine, not of the model.
            run = {"remat": "none", "attention_impl": "auto"}
            return None if fields is None else config.with_fields({**fields, **run})

        return cls(
            build(vision, model["vision"]),
            build(TextConfig, model.get("text")),
            build(CaptionConfig, model.get("decoder")),
            model.get("loss") == "sigmoid",
        )


@dataclasses.dataclass(frozen=True)
class ClipOrigin:
    """What a folder says and a model's parameters do not.

    Attributes:
      dtype: of the stored weights, a name of `weights.DTYPES`.
      image_size: side in pixels of the images that it is to see.
      resize_mode: "squash" makes an image a square whatever its aspect, "shortest" crops its
        centre.
      interpolation: "bilinear" or "bicubic".
      tokenizer: its file; None where it is unknown.
      scale_shape: of logit_scale and logit_bias, () or (1,).
    """

    dtype: str = "float32"
    image_size: int = 224
    resize_mode: str = "squash"
    interpolation: str = "bilinear"
    tokenizer: str | None = None
    scale_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale_shape", tuple(self.scale_shape))  # a list in JSON
        for field, known in (
            ("resize_mode", ("squash", "shortest")),
            ("interpolation", ("bilinear", "bicubic")),
        ):
            if getattr(self, field) not in known:
                value = getattr(self, field)
                raise ValueError(f"{field} = {value!r} must be one of {', '.join(known)}")


def require_openvision(parts: Parts, what: str) -> None:
    """Raises a ValueError unless the image tower is OpenVision's."""
    if not isinstance(parts.vision, OpenVisionConfig):
        raise ValueError(
            f"{what} has no place for this image tower, whose positions are rotary: export it with "
            "--format hf"
        )


def to_openclip_config(parts: Parts, origin: ClipOrigin) -> dict[str, Any]:
    """The content of open_clip_config.json.

    Raises:
      ValueError: OpenCLIP cannot build such a model.
    """
    require_openvision(parts, "OpenCLIP")
    vision, text = parts.vision, parts.text
    if text is None:
        raise ValueError(
            "OpenCLIP has no models without a text tower: export this one with --format hf"
        )
    model: dict[str, Any] = {
        "embed_dim": text.embed_dim,
        "vision_cfg": {
            "image_size": origin.image_size,
            "patch_size": vision.patch,
            "head_width": vision.width // vision.num_heads,
            **_tower(vision),
            **_VISION,
        },
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "heads": text.num_heads,
            **_tower(text),
            **_TEXT,
            # The folder's own files; the name only tells that they are of Hugging Face's kind.
            "hf_tokenizer_name": "local",
            "tokenizer_mode": "clips",
        },
    }
    if parts.bias:
        model["init_logit_bias"] = -10.0
    content = {"model_cfg": model, "preprocess_cfg": preprocess_settings(origin)}
    if parts.decoder is not None:
        content["decoder_cfg"] = dataclasses.asdict(parts.decoder)
    return content


def preprocess_settings(origin: ClipOrigin) -> dict[str, Any]:
    """OpenCLIP's `preprocess_cfg`."""
    return {
        "mean": list(IMAGE_MEAN),
        "std": list(IMAGE_STD),
        "interpolation": origin.interpolation,
        "resize_mode": origin.resize_mode,
    }


def from_openclip_config(
    content: Mapping[str, Any], path: Path, *, texts: bool = True
) -> tuple[Parts, ClipOrigin]:
    """The sizes that an open_clip_config.json states; dtype and tokenizer are not in it.

    Args:
      content: of the file.
      path: its name, for messages.
      texts: whether there are weights of a text tower. OpenVision 2 publishes none, and then its
        `text_cfg` means nothing, and it states no preprocessing.

    Raises:
      ValueError: a key is missing, or asks for what our models do not compute.
    """
    model, preprocess = content.get("model_cfg"), content.get("preprocess_cfg", {})
    if not isinstance(model, Mapping) or "vision_cfg" not in model:
        raise ValueError(f"{path} has no model_cfg with vision_cfg: it is no OpenCLIP model")
    vision, text = dict(model["vision_cfg"]), model.get("text_cfg")
    _require(vision, _VISION, f"{path}: vision_cfg")
    heads = whole_number(vision, "width", path) // vision.pop("head_width", 64)
    size = vision.pop("image_size", 224)
    patch = whole_number(vision, "patch_size", path)
    parts = Parts(
        OpenVisionConfig(patch=patch, num_heads=heads, **_from_tower(vision, path)),
        bias=model.get("init_logit_bias") is not None,
    )
    vision.pop("patch_size")
    _require_nothing(vision, f"{path}: vision_cfg")
    if not texts:
        stated = {"mean": IMAGE_MEAN, "std": IMAGE_STD, **_OPENVISION_PREPROCESS}
        return dataclasses.replace(parts, bias=False), origin_of(size, preprocess or stated, path)
    if text is not None:
        text = dict(text)
        _require(text, _TEXT, f"{path}: text_cfg")
        fields = {
            ours: whole_number(text, theirs, path)
            for ours, theirs in (
                ("num_heads", "heads"),
                ("vocab_size", "vocab_size"),
                ("context_length", "context_length"),
            )
        }
        embed_dim = whole_number(model, "embed_dim", path)
        config = TextConfig(embed_dim=embed_dim, **fields, **_from_tower(text, path))
        for key in ("heads", "vocab_size", "context_length"):
            text.pop(key)
        _require_nothing(text, f"{path}: text_cfg")
        parts = dataclasses.replace(parts, text=config)
    if "decoder_cfg" in content:
        decoder = CaptionConfig.with_fields(content["decoder_cfg"])
        parts = dataclasses.replace(parts, decoder=decoder)
    return parts, origin_of(size, preprocess, path)


def _tower(config: OpenVisionConfig | TextConfig) -> dict[str, Any]:
    ratio = config.mlp_dim / config.width
    if int(config.width * ratio) != config.mlp_dim:  # OpenCLIP rounds down
        ratio = (config.mlp_dim + 0.5) / config.width
    return {
        "width": config.width,
        "layers": config.depth,
        "mlp_ratio": ratio,
        "norm_kwargs": {"eps": config.layer_norm_eps},
    }


def _from_tower(cfg: dict[str, Any], path: Path) -> dict[str, Any]:
    """Takes the keys of `_tower` out of a vision_cfg or text_cfg."""
    width, depth = whole_number(cfg, "width", path), whole_number(cfg, "layers", path)
    norm = dict(cfg.pop("norm_kwargs", None) or {})
    eps = norm.pop("eps", 1e-5)  # PyTorch's own
    _require_nothing(norm, f"{path}: norm_kwargs")
    ratio = cfg.pop("mlp_ratio", 4.0)
    for key in ("width", "layers"):
        cfg.pop(key)
    return {
        "width": width,
        "depth": depth,
        "mlp_dim": int(width * ratio),
        "layer_norm_eps": eps,
    }


def origin_of(size: Any, preprocess: Mapping[str, Any], path: Path) -> ClipOrigin:
    """What OpenCLIP's `image_size` and `preprocess_cfg` say.

    Args:
      size, preprocess: their values.
      path: of their file, for messages.

    Raises:
      ValueError: images are no squares, or not normalised as our tower does.
    """
    for key, ours in (("mean", IMAGE_MEAN), ("std", IMAGE_STD)):
        found = preprocess.get(key)
        if found is None or [round(x, 6) for x in found] != [*ours]:
            raise ValueError(
                f"{path}: preprocess_cfg.{key} = {found}, but our tower normalises by {[*ours]}"
            )
    if isinstance(size, list):
        size = size[0] if len(set(size)) == 1 else size
    if not isinstance(size, int):
        raise ValueError(f"{path}: image_size = {size} must be one number: images are squares here")
    return ClipOrigin(
        image_size=size,
        resize_mode=preprocess.get("resize_mode", "shortest"),
        interpolation=preprocess.get("interpolation", "bicubic"),
    )


def whole_number(cfg: Mapping[str, Any], key: str, path: Path) -> int:
    """The integer of a key; ValueError where there is none."""
    value = cfg.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{path}: {key} = {value!r} must be a whole number")
    return value


def _require(cfg: dict[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    for key, value in wanted.items():
        found = cfg.pop(key, None)
        if found != value:
            raise ValueError(f"{where}.{key} = {found!r}, only {value!r} is supported")


def _require_nothing(cfg: Mapping[str, Any], where: str) -> None:
    for key, value in cfg.items():
        if value and key not in _FREE:
            raise ValueError(f"{where}.{key} = {value!r} is not supported")
