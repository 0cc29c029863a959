"""Checkpoints: exactly what is trained, the optimiser's moments, and where the run stands.

    WORKDIR/checkpoints/00000500/trained.safetensors    parameter name -> tensor
                                 optimizer.safetensors  NAME/exp_avg, NAME/exp_avg_sq, NAME/step
                                 state.json             step, configuration, data position, digests

Nothing is pickled. Tensors are whole, however many processes held pieces of them, so that a run
goes on with another number of processes. A folder is written beside its place and renamed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .optim import part_of

FOLDER = "checkpoints"
TRAINED, OPTIMIZER, STATE = "trained.safetensors", "optimizer.safetensors", "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
DIGEST_VALUES = 64  # of a tensor, evenly spread

# What may differ between the two halves of a run: it changes speed, memory, paths or reports.
FREE = ("checkpoint", "gradient_checkpointing", "init", "init_projector", "log_steps")
FREE += ("max_failures", "max_nan_steps", "micro_batch_size", "save_dtype", "wandb_project")
FREE += ("data.recipe", "data.root", "data.workers", "model.attn_implementation")
FREE += ("model.encoder", "model.encoders", "model.language_model")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a run trains, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(
    workdir: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: int,
    writes: bool,
) -> None:
    """Saves a step; of several processes all have to call it, and one writes.

    Args:
      workdir: of the run.
      model: not wrapped.
      optimizer: of its trained parameters.
      state: `step` and whatever else goes into state.json.
      keep: number of checkpoints that stay, the newest.
      writes: True in one process.
    """
    trained, moments = {}, {}
    for name, parameter in trained_parameters(model).items():
        found = {key: optimizer.state[parameter].get(key) for key in MOMENTS}
        # Gathering is up to all processes, keeping the result to one of them.
        whole = {key: _whole(tensor) for key, tensor in found.items() if tensor is not None}
        weight = _whole(parameter)
        if writes:
            trained[name] = weight
            moments |= {f"{name}/{key}": tensor for key, tensor in whole.items()}
    if not writes:
        return
    folder = workdir / FOLDER / f"{state['step']:08d}"
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(trained, temporary / TRAINED)
    save_file(moments, temporary / OPTIMIZER)
    (temporary / STATE).write_text(json.dumps(state, indent=1) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    for old in _steps(workdir)[:-keep]:
        shutil.rmtree(old)


def latest_checkpoint(workdir: Path) -> Path | None:
    """The folder of the newest step; None where there is none."""
    return next(reversed(_steps(workdir)), None)


def read_state(folder: Path) -> dict[str, Any]:
    """The state.json of a checkpoint."""
    return json.loads((folder / STATE).read_text())


def read_trained(folder: Path) -> dict[str, torch.Tensor]:
    """The trained tensors of a checkpoint, by name."""
    return load_file(folder / TRAINED)


@torch.no_grad()
def load_trained(
    parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor], source: Any
) -> None:
    """Puts saved tensors into the parameters of the same names, which have to be those exactly.

    Args:
      parameters: name -> parameter, also one in pieces over the processes.
      tensors: name -> tensor, whole.
      source: where they come from, for messages.

    Raises:
      ValueError: a name is missing on either side, or a shape differs.
    """
    _same_names(parameters, tensors, source)
    for name, tensor in tensors.items():
        parameter = parameters[name]
        if parameter.shape != tensor.shape:
            raise ValueError(
                f"{source}: {name} is {list(tensor.shape)}, in the model {list(parameter.shape)}"
            )
        parameter.copy_(_like(tensor, parameter))


def restore_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts the tensors of a checkpoint of the same run into model and optimiser.

    Raises:
      ValueError: the checkpoint is of a run that trains something else.
    """
    parameters = trained_parameters(model)
    load_trained(parameters, read_trained(folder), folder)
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(folder / OPTIMIZER).items():
        name, _, moment = key.rpartition("/")
        moments.setdefault(name, {})[moment] = tensor
    if moments:
        _same_names(parameters, moments, folder / OPTIMIZER)
    for name, found in moments.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            # The count of steps stays where AdamW made it, on the CPU, unless it is fused.
            key: tensor.clone() if key == "step" else _like(tensor, parameter).clone()
            for key, tensor in found.items()
        }


def digests(model: nn.Module) -> dict[str, str]:
    """A fingerprint per part of what is frozen in it: names, shapes and some of the values.

    A checkpoint holds only what was trained; by this it knows the weights that it was trained upon.
    Call it before the model is spread over processes or brought to another dtype.
    """
    sums: dict[str, Any] = {}
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            continue
        flat = parameter.detach().flatten()
        index = torch.linspace(0, len(flat) - 1, min(DIGEST_VALUES, len(flat))).long()
        values = flat[index].to("cpu", torch.float32).numpy()
        found = sums.setdefault(part_of(name), hashlib.sha256())
        # A base layer below an adapter is the same weight as without one.
        bare = name.replace(".base_layer.", ".")
        found.update(f"{bare} {tuple(parameter.shape)}".encode())
        found.update(values.tobytes())
    return {part: found.hexdigest()[:16] for part, found in sums.items()}


def require_same_base(recorded: Mapping[str, str], model: nn.Module, source: Any) -> None:
    """Refuses a checkpoint that was trained upon other frozen weights.

    Raises:
      ValueError: which part differs.
    """
    found = digests(model)
    for part in recorded:
        if recorded[part] != found.get(part):
            raise ValueError(
                f"{source} was trained upon other weights of the {part}: give the ones that its "
                "config.json names"
            )


def require_same_run(recorded: Mapping[str, Any], about: Mapping[str, Any], source: Any) -> None:
    """Refuses to go on with what would make it another run.

    Args:
      recorded: state.json of the checkpoint.
      about: `config`, `base`, `data` and `encoders` of the run that wants to go on.
      source: the checkpoint, for messages.

    Raises:
      ValueError: what differs.
    """
    old = dict(_flat(recorded["config"]))
    new = dict(_flat(json.loads(json.dumps(about["config"]))))
    keys = [key for key in new if not any(f"{key}.".startswith(f"{free}.") for free in FREE)]
    changed = [
        f"config.{key} was {old.get(key)!r}, is {new[key]!r}"
        for key in keys
        if old.get(key) != new[key]
    ]
    same = {"base": "frozen weights", "data": "data, or its order", "encoders": "encoders"}
    for key, what in same.items():
        if recorded.get(key) != about.get(key):
            changed.append(f"the {what} are not the same")
    if changed:
        raise ValueError(
            f"{source} belongs to another run ({'; '.join(changed)}): give what it was begun with, "
            "or another --workdir"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _steps(workdir: Path) -> list[Path]:
    folder = workdir / FOLDER
    return sorted(p for p in folder.glob("*") if p.name.isdecimal()) if folder.is_dir() else []


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU; of a tensor in pieces (FSDP2) all of it, which all processes ask for."""
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.cpu().contiguous()


def _like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """`tensor` on the parameter's device, in its dtype, in the pieces in which it lies."""
    tensor = tensor.to(parameter.device, parameter.dtype)
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor


def _same_names(parameters: Mapping[str, Any], tensors: Mapping[str, Any], source: Any) -> None:
    absent, strange = (
        sorted(parameters.keys() - tensors.keys()),
        sorted(tensors.keys() - parameters.keys()),
    )
    if absent:
        raise ValueError(f"{source} lacks {len(absent)} parameters, among them {absent[0]}")
    if strange:
        raise ValueError(
            f"{source} has {len(strange)} tensors that the run does not train, among them "
            f"{strange[0]}"
        )
