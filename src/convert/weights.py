"""The weight files of a Hugging Face folder: one safetensors file, or shards with an index.

An index and its shards are named and filled as transformers does it. Needs no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from ..files import PathOrUrl, is_url, write_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
"""The dtypes of stored weights, by the names that transformers gives them."""

_STORED = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder, in the dtypes in which they are stored.

    Args:
      folder: holds WEIGHTS, or INDEX and the files that it names.

    Returns:
      Arrays by name; bfloat16 as ml_dtypes has it.

    Raises:
      ValueError: a file is missing or damaged, holds a dtype that is not in DTYPES, or the shards
        do not hold what the index says.
    """
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise ValueError(f"{folder} has a config.json but neither {WEIGHTS} nor {INDEX}")
        return read_safetensors(folder / WEIGHTS)
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict):
        raise ValueError(f"{folder / INDEX} has no weight_map: it says where no tensor lies")
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(index.values())):
        if Path(shard).name != shard:
            raise ValueError(f"{folder / INDEX}: weight file {shard!r} is no plain file name")
        found = read_safetensors(folder / shard)
        listed = {name for name, where in index.items() if where == shard}
        if different := sorted(listed ^ found.keys()):
            where = "in the index only" if different[0] in listed else "in the file only"
            raise ValueError(
                f"{folder / shard}: {len(different)} tensor(s) are not as {INDEX} says, the first "
                f"{different[0]!r} is {where}"
            )
        tensors |= found
    return tensors


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file, in the dtypes in which they are stored.

    Raises:
      ValueError: the file is missing, damaged, or holds a dtype that is not in DTYPES.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        entries = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _STORED:
            raise ValueError(
                f"{path}: tensor {name!r} is {entry['dtype']}, not one of {[*_STORED]}"
            )
        tensors[name] = np.frombuffer(entry["data"], _STORED[entry["dtype"]]).reshape(
            entry["shape"]
        )
    return tensors


def write_weights(
    folder: Path, tensors: Mapping[str, np.ndarray], shard_bytes: int | None = None
) -> None:
    """Writes tensors as one file, or as shards with an index.

    Args:
      folder: where to.
      tensors: contiguous arrays by name.
      shard_bytes: most bytes of tensors in a file; a larger tensor gets a file of its own. None
        writes one file, and so does a size that holds everything.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if shard_bytes is not None and shards[-1] and used + tensor.nbytes > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / WEIGHTS, metadata={"format": "pt"})
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    totals = {
        "total_parameters": sum(tensor.size for tensor in tensors.values()),
        "total_size": sum(tensor.nbytes for tensor in tensors.values()),
    }
    write_json(folder / INDEX, {"metadata": totals, "weight_map": weight_map}, sort_keys=True)


def parse_size(text: str) -> int:
    """Bytes of a size such as "5GB" (10^9 bytes each) or "5GiB" (2^30), as transformers reads it.

    Raises:
      ValueError: `text` is no such size, or less than a byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)", text.strip(), flags=re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise ValueError(f"size {text!r} must be a number and a unit, such as 5GB or 500MiB")
    return size


def folder_path(path: PathOrUrl) -> Path:
    """A folder of this machine, or of a bucket (gs://), which Orbax and its path class reach."""
    if not is_url(path):
        return Path(path)
    # Imported here: a local exported folder opens without Orbax.
    from ..trainers.checkpoint_reading import checkpoint_path

    return checkpoint_path(path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; ValueError where it holds none."""
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, found {type(content).__name__}")
    return content
