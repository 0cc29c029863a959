"""The frozen encoders that a probe reads tokens of: ours on the mesh, or a PyTorch model beside it.

Shape suffixes: B rows of a batch over all processes, L tokens, D width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ...convert.load import read_checkpoint
from ...data.records import RecordError, RecordSet
from ...models.vit import ViT
from ..flops import train_flops_per_token
from ..mesh import put_batch, shard_tree
from ..pretrain_config import model_config
from .config import AttentiveProbeConfig
from .examples import ProbeData

HF_PREFIX = "hf:"
_INPUTS = ("patches", "positions", "length")

Rows = dict[str, np.ndarray]
Features = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """An encoder that is not trained.

    Attributes:
      width: D.
      encode: this process' rows of a loader batch -> global arrays over the mesh: `tokens`
        [B, L, D] with `length` int32 [B], their valid prefixes, and of our encoders their own
        pooled embedding, `pooled` [B, D].
      tokens: of the longest example.
      flops: of the forward pass of one row, as far as they are counted.
    """

    width: int
    encode: Callable[[Rows], Features]
    tokens: int
    flops: float


def open_encoder(
    config: AttentiveProbeConfig, data: ProbeData, budget: int, mesh: Mesh
) -> FrozenEncoder:
    """The encoder that a configuration names.

    Args:
      config: its encoder, ema, dtype and mesh.
      data: what it will see.
      budget: tokens of a row of the loader's batches.
      mesh: the run's mesh.

    Raises:
      ValueError: there is no such encoder, or it cannot see these records.
    """
    records = data.train.views[0]
    if config.encoder.startswith(HF_PREFIX):
        return _open_torch(config, records, data.longest, mesh)
    found = read_checkpoint(config.encoder, ema=config.ema)
    model = model_config({**dataclasses.asdict(found.config), "dtype": config.dtype})
    patch = records.manifest["patch"]
    if model.patch != patch:
        raise ValueError(
            f"{records.path} holds patches of {patch} pixels, {config.encoder} takes "
            f"{model.patch}: pack with --patch {model.patch}"
        )
    params = jax.device_put(found.params, shard_tree(found.params, mesh, config.mesh))
    vit = ViT(model)

    @jax.jit
    def apply(params: Any, batch: dict[str, jax.Array]) -> Features:
        out = vit.apply({"params": params}, *(batch[key] for key in _INPUTS))
        return {"tokens": out["tokens"], "pooled": out["pooled"], "length": batch["length"]}

    def encode(rows: Rows) -> Features:
        return apply(params, put_batch({key: rows[key] for key in _INPUTS}, mesh))

    flops = budget * train_flops_per_token(model, budget) / 3
    return FrozenEncoder(model.width, encode, data.longest, flops)


def mean_of_tokens(features: Features) -> jax.Array:
    """[B, D], over the valid prefixes."""
    tokens_BLD = features["tokens"].astype(jnp.float32)
    valid_BL = jnp.arange(tokens_BLD.shape[1]) < features["length"][:, None]
    return (tokens_BLD * valid_BL[..., None]).sum(axis=1) / features["length"][:, None]


def _open_torch(
    config: AttentiveProbeConfig, records: RecordSet, longest: int, mesh: Mesh
) -> FrozenEncoder:
    manifest = records.manifest
    if config.ema:
        raise ValueError(f"config.ema: {config.encoder} has no moving average")
    if manifest["mode"] != "frames":
        raise ValueError(
            f"{config.encoder} sees whole frames, but {records.path} holds mode "
            f"{manifest['mode']!r}: choose config.input = framesN"
        )
    # Imported here: our own encoders need no torch.
    from ...convert.torch_encoder import TorchEncoder

    name = config.encoder.removeprefix(HF_PREFIX)
    model = TorchEncoder(name, longest // _frame_patches(records), config.dtype)

    def encode(rows: Rows) -> Features:
        length_B = np.where(rows["weight"] > 0, rows["length"], 0)
        tokens_BLD, length_B = model(rows["patches"], rows["positions"], length_B)
        return put_batch({"tokens": tokens_BLD, "length": length_B}, mesh)

    return FrozenEncoder(model.width, encode, model.tokens, 0.0)


def _frame_patches(records: RecordSet) -> int:
    """Patches of one frame, of any record that can be read."""
    for index in range(len(records)):
        with contextlib.suppress(RecordError):
            found = records[index]
            return math.prod(side // found.sequence.patch for side in found.view)
    raise ValueError(f"{records.path}: none of its {len(records)} records can be read")
