"""Low-rank adapters of the language model, by peft (Hu et al. 2021, arXiv 2106.09685).

They are put into the language model's own layers, without peft's wrapper around it: the model's
code finds its layers where they always are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from .config import LoraOptions

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER = "default"  # peft's name of the one adapter that there is


def add_lora(model: nn.Module, config: LoraOptions) -> None:
    """Puts fresh adapters into the language model's linear layers, all but its output layer.

    An adapter begins as nothing (B = 0): the model's outputs stay as they are.

    Raises:
      ValueError: a name in `targets` fits no linear layer of the language model.
    """
    from peft import inject_adapter_in_model

    inject_adapter_in_model(_peft_config(model, config), model.language_model)


def has_lora(model: nn.Module) -> bool:
    return any(is_adapter(name) for name, _ in model.named_parameters())


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Adds the adapters to the weights and takes them out of the model.

    Raises:
      ValueError: an adapter is infinite or not a number.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in layers:
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise ValueError(f"the adapter of {name} cannot be merged: {error}") from error
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


def save_adapter(
    model: nn.Module, config: LoraOptions, trained: Mapping[str, torch.Tensor], folder: Path
) -> None:
    """Writes the adapter as peft does, and beside it what else the run trained.

    Args:
      model: a model that carries the adapter.
      config: of the adapter.
      trained: name -> tensor of everything that was trained.
      folder: gets adapter_config.json, adapter_model.safetensors and, for projector and encoder,
        other_trained.safetensors.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    description = _peft_config(model, config)
    description.base_model_name_or_path = model.language_model.config.name_or_path
    description.inference_mode = True
    description.save_pretrained(str(folder))
    adapter, others = {}, {}
    for name, tensor in trained.items():
        if is_adapter(name):
            inner = name.removeprefix("language_model.").replace(f".{ADAPTER}.weight", ".weight")
            adapter[f"base_model.model.{inner}"] = tensor.contiguous()
        else:
            others[name] = tensor.contiguous()
    save_file(adapter, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if others:
        save_file(others, folder / "other_trained.safetensors")


def same_adapter(one: LoraOptions, other: LoraOptions) -> bool:
    """Whether weights of one adapter fit the other and mean the same there; dropout may differ."""
    return all(getattr(one, f) == getattr(other, f) for f in ("rank", "alpha", "targets"))


def _peft_config(model: nn.Module, config: LoraOptions) -> LoraConfig:
    from peft import LoraConfig

    known = _linear_layers(model.language_model)
    for target in config.targets:
        if target not in known:
            raise ValueError(
                f"config.lora.targets: no linear layer of the language model is called {target!r}; "
                f"there are {', '.join(known)}"
            )
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=[*(config.targets or known)],
        task_type="CAUSAL_LM",
    )


def _linear_layers(language_model: nn.Module) -> list[str]:
    """Last names of the linear layers but the output layer's, adapters in them or not."""
    head = language_model.get_output_embeddings()
    found = set()
    for name, module in language_model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name:
            found.add(name.removesuffix(".base_layer").split(".")[-1])
    return sorted(found)
