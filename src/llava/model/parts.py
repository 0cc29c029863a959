"""A new model from its parts: towers from their folders, a language model, a drawn projector."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.configuration_utils import PretrainedConfig

from ..encoders.entry import EncoderEntry
from ..encoders.loading import load_tower, pixel_statistics
from ..encoders.registry import build_tower
from ..templates import template_for
from .config import LlavaConfig
from .fused_projector import FusedProjector
from .projectors import Projector, init_weights

if TYPE_CHECKING:
    from .modeling import LlavaForConditionalGeneration

    Model = TypeVar("Model", bound=LlavaForConditionalGeneration)

SOURCE = re.compile(
    r"(?P<name>[^=:]+)=(?P<kind>[^=:]+):(?P<folder>.+?)(?:@(?P<frames>\d+))?(?:\?(?P<more>[^?]*))?"
)
FORM = "NAME=KIND:FOLDER, or NAME=KIND:FOLDER@FRAMES, and behind either ?FIELD=VALUE&..."
MORE = ("select_layer", "image_size", "resize", "chunk")
"""Fields of `EncoderEntry` that a text can set."""


def build_options(dtype: torch.dtype, attn_implementation: str | None) -> dict[str, Any]:
    """What transformers is told about all parts."""
    options: dict[str, Any] = {"dtype": dtype}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    return options


def parse_source(text: str) -> dict[str, Any]:
    """An encoder as one text, see FORM, as fields.

    Raises:
      ValueError: the text is of another form.
    """
    found = SOURCE.fullmatch(text)
    if found is None:
        raise ValueError(
            f"encoder {text!r} must be {FORM}, as in image=siglip:weights/siglip@16?select_layer=-1"
        )
    fields: dict[str, Any] = {k: found[k] for k in ("name", "kind", "folder")}
    if found["frames"] is not None:
        fields["frames"] = int(found["frames"])
    for setting in (found["more"] or "").split("&") if found["more"] is not None else ():
        name, _, value = setting.partition("=")
        if name not in MORE or not value:
            raise ValueError(f"encoder {text!r}: {setting!r} must set one of {', '.join(MORE)}")
        fields[name] = int(value) if re.fullmatch(r"-?\d+", value) else value
    return fields


def load_encoders(
    sources: Sequence[str | Mapping[str, Any]], resize: str | None, options: Mapping[str, Any]
) -> tuple[list[EncoderEntry], nn.ModuleDict]:
    """The encoders of a new model; arguments and errors as for `from_encoders`."""
    entries, towers = [], {}
    for source in sources:
        given = parse_source(source) if isinstance(source, str) else dict(source)
        if "folder" not in given or "kind" not in given:
            raise ValueError(f"encoder {given.get('name')!r} needs kind and folder")
        folder = given.pop("folder")
        tower = load_tower(given["kind"], folder, **options)
        fields = {**pixel_statistics(folder), **given, "config": tower.config}
        entry = EncoderEntry.of(fields)
        if resize is not None and not entry.reads_patches:
            entry = EncoderEntry.of({**fields, "resize": resize})
        entries.append(entry)
        towers[entry.name] = tower
    return entries, nn.ModuleDict({name: towers[name] for name in sorted(towers)})


def build_towers(config: LlavaConfig, attn_implementation: str | None) -> nn.ModuleDict:
    """Freshly drawn towers of `config.encoders`, in the order of their names."""
    options = build_options(torch.get_default_dtype(), attn_implementation)
    names = sorted(entry.name for entry in config.encoders)
    entries = {name: config.entry(name) for name in names}
    return nn.ModuleDict(
        {name: build_tower(e.kind, e.config, **options) for name, e in entries.items()}
    )


def assemble(
    cls: type[Model],
    encoders: Mapping[str, Any],
    tower: nn.Module,
    language_model: str | Path | PretrainedConfig,
    options: Mapping[str, Any],
    fields: Mapping[str, Any],
    seed: int = 0,
) -> Model:
    """A model of towers with their weights, a language model, and a freshly drawn projector.

    Args:
      cls: of the model.
      encoders: `vision_config` or `encoders` of its configuration.
      tower: the tower, or the towers by name.
      language_model: a folder or hub name; or a configuration, for one that is freshly drawn.
      options: of `build_options`.
      fields: of `LlavaConfig`. Without `template` the language model's type decides.
      seed: of the projectors of `encoders`; that of one encoder is drawn from torch's generator.

    Raises:
      ValueError: a field does not fit.
    """
    if isinstance(language_model, PretrainedConfig):
        text = AutoModelForCausalLM.from_config(language_model, **options)
    else:
        text = AutoModelForCausalLM.from_pretrained(language_model, **options)
    fields = dict(fields)
    if "template" not in fields:
        fields["template"] = template_for(text.config).name
    attention = options.get("attn_implementation")
    config = LlavaConfig(
        **encoders, text_config=text.config, attn_implementation=attention, **fields
    )
    with torch.device("meta"):
        model = cls(config)
    if config.encoders:
        model.projector = FusedProjector(config).to(options["dtype"])
        model.projector.draw(seed)
    else:
        model.projector = Projector(config).to(options["dtype"])
        model.projector.apply(init_weights)
    model.vision_tower, model.language_model = tower, text
    return model.eval()
