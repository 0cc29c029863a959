"""The model that a run starts from: new parts, an earlier stage, a projector file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .checkpoints import (
    latest_checkpoint,
    load_trained,
    read_state,
    read_trained,
    require_same_base,
)
from .config import LlavaTrainConfig, ModelOptions, parse_config
from .lora import add_lora, has_lora, same_adapter
from .optim import set_trainable
from .projector_files import load_projectors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..model.modeling import LlavaForConditionalGeneration

CONFIG = "config.json"  # of a run, and of a model folder
MODEL = "model"  # the finished model in a run's folder
ADAPTER = "adapter"  # the adapter of a LoRA run there
CHANGEABLE = ("timestamps", "image_size", "max_pixels")  # no weight depends on them


def start_model(config: LlavaTrainConfig) -> LlavaForConditionalGeneration:
    """The model before the first step, float32, on the CPU, with its adapter if it has one.

    New weights come from `config.seed` alone, so that all processes draw the same.

    Raises:
      ValueError: parts, an earlier run or a projector file don't fit.
    """
    from ..model.modeling import LlavaForConditionalGeneration

    torch.manual_seed(config.seed)
    options = {"dtype": torch.float32, "attn_implementation": config.model.attn_implementation}
    if config.init:
        model = _earlier_model(config, options)
    elif config.model.encoders:
        model = LlavaForConditionalGeneration.from_encoders(
            config.model.encoders,
            config.model.language_model,
            resize=config.model.resize,
            **options,
            **config.model.options(),
        )
    else:
        model = LlavaForConditionalGeneration.from_parts(
            config.model.encoder, config.model.language_model, **options, **config.model.options()
        )
    if config.init_projector:
        load_projectors(model.projector, config.init_projector)
    if config.lora.rank and not has_lora(model):
        torch.manual_seed(config.seed + 1)
        add_lora(model, config.lora)
    return model


def prepare_training(model: LlavaForConditionalGeneration, config: LlavaTrainConfig) -> set[str]:
    """Freezes what the run doesn't train; returns the names of what it does."""
    used = {id(parameter) for parameter in model.vision_parameters()}
    tower = model.vision_tower.named_parameters(prefix="vision_tower")
    unused = {name for name, parameter in tower if id(parameter) not in used}
    return set_trainable(model, config.optim, unused, lora=config.lora.rank > 0)


def start_tokenizer(config: LlavaTrainConfig) -> PreTrainedTokenizerBase:
    """The language model's tokenizer; one without a pad token fills rows by its eos token.

    Raises:
      ValueError: the folder has none.
    """
    from transformers import AutoTokenizer

    folder = config.model.language_model
    if config.init:
        folder = str(_model_folder(Path(config.init)))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has no tokenizer that can be read: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_run(
    run: Path,
) -> tuple[LlavaTrainConfig, LlavaForConditionalGeneration, dict[str, torch.Tensor]]:
    """The model of a run at its newest checkpoint, its adapter still apart.

    Returns:
      The run's configuration, the model, and what the run has trained, by name.

    Raises:
      ValueError: the folder has no checkpoint, or what it was trained upon is not there any more.
    """
    config = read_run(run)
    folder = latest_checkpoint(run)
    if folder is None:
        raise ValueError(f"{run} has no checkpoint yet")
    model, trained = start_model(config), read_trained(folder)
    prepare_training(model, config)
    state = read_state(folder)
    require_same_base(state["base"], model, folder)
    model.config.assets_hash = state["assets_hash"]
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    load_trained(parameters, trained, folder)
    return config, model.eval(), trained


def read_run(run: Path) -> LlavaTrainConfig:
    """The configuration that a run's folder states.

    Raises:
      ValueError: it is no folder of a run.
    """
    if not is_run(run):
        raise ValueError(f"{run} is no folder of `codecvit llava train`")
    return parse_config(json.loads((run / CONFIG).read_text()))


def is_run(folder: Path) -> bool:
    """Whether this is a run's folder, and not, say, that of a model."""
    file = folder / CONFIG
    return file.is_file() and {"optim", "data"} <= json.loads(file.read_text()).keys()


def _earlier_model(
    config: LlavaTrainConfig, options: dict[str, Any]
) -> LlavaForConditionalGeneration:
    """What `config.init` names, with everything that was trained there."""
    from ..model.modeling import LlavaForConditionalGeneration
    from ..templates import template_for

    folder = Path(config.init)
    model_folder = _model_folder(folder)
    adapter = config.lora.after_lora == "continue"
    earlier = read_run(folder) if is_run(folder) else None
    if adapter and config.lora.rank and (earlier is None or not earlier.lora.rank):
        raise ValueError(
            f"config.lora.after_lora = 'continue': {folder} is no LoRA run, take 'merge'"
        )
    if adapter and earlier is not None and earlier.lora.rank:
        if not same_adapter(earlier.lora, config.lora):
            raise ValueError(
                f"config.lora.after_lora = 'continue', but rank, alpha and targets of {folder} are "
                f"{earlier.lora.rank}, {earlier.lora.alpha} and {earlier.lora.targets}: give the "
                "same, or take 'merge'"
            )
        model = load_run(folder)[1]
        model.set_attn_implementation(options["attn_implementation"])
    else:
        model = LlavaForConditionalGeneration.from_pretrained(model_folder, **options)
    _same_options(config.model, model, folder)
    for name in CHANGEABLE:
        if (value := getattr(config.model, name)) is not None:
            setattr(model.config, name, value)
    template = config.model.template or model.config.template
    if template == "plain" and config.model.template is None:
        template = template_for(model.language_model.config, start_tokenizer(config)).name
    model.config.template = template
    return model


def _model_folder(folder: Path) -> Path:
    """The complete model in a run's folder, or the folder itself.

    Raises:
      ValueError: there is none.
    """
    if is_run(folder):
        if not (folder / MODEL / CONFIG).is_file():
            raise ValueError(
                f"config.init: the run in {folder} has not come to its end: run it again with the "
                "same --workdir, or make a model of it by `codecvit llava merge-lora`"
            )
        return folder / MODEL
    if not (folder / CONFIG).is_file():
        raise ValueError(f"config.init: {folder} is neither a run's folder nor a model's")
    return folder


def _same_options(given: ModelOptions, model: nn.Module, folder: Path) -> None:
    for name, value in given.options().items():
        found = getattr(model.config, name)
        value = [*value] if isinstance(value, tuple) else value
        if name not in ("template", *CHANGEABLE) and value != found:
            raise ValueError(
                f"config.model.{name} = {value!r}, but {folder} has {found!r}: leave it out"
            )
