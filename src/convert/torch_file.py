"""Weights that PyTorch pickled (`.bin`), by its restricted unpickler. Imports torch, and no jax."""

from __future__ import annotations

import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import torch


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict.

    A pickle may hold code. `weights_only` refuses everything but tensors and plain containers; a
    safetensors file is still the better one to have.

    Args:
      path: what `torch.save` wrote.

    Returns:
      Arrays by name, in the dtypes in which they are stored.

    Raises:
      ValueError: the file is damaged, holds anything but a state dict, or a dtype that numpy and
        ml_dtypes have not.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} holds no plain tensors: {first}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # as OpenCLIP's trainer saves it
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise ValueError(f"{path} holds no state dict: expected tensors by name")
    return {name: _array(path, name, tensor) for name, tensor in state.items()}


def _array(path: Path, name: str, tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # numpy has none of its own
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype not in (torch.float32, torch.float16):
        raise ValueError(
            f"{path}: tensor {name!r} is {tensor.dtype}, not float32, float16, bfloat16"
        )
    return tensor.numpy()
