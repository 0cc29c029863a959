"""The configuration of an attentive probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...config_values import build, require
from ..run_config import CheckpointConfig, MeshConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentiveProbeConfig:
    """A probe of one frozen encoder on one data set with one kind of input.

    Attributes:
      data: folder that `codecvit probe-data --out` wrote.
      input: name of the record sets in it: codecK (K patches) or framesN (N frames).
      encoder: what `codecvit.load` takes, or hf:NAME_OR_FOLDER for any image encoder that
        transformers' AutoModel opens; such a one sees frames only.
      ema: of a checkpoint, the moving average of the parameters.
      label: name of the encoder in reports; "" takes `encoder`.
      dtype: compute dtype of encoder and pooling: float32, bfloat16, or auto (float32 on a CPU).
      epochs: passes over the training part.
      batch_size: examples per step, over all devices.
      lrs: peak learning rates; each trains a head of its own, all on one pass of the encoder.
      end_lr: the rates fall linearly to this one.
      label_smoothing: of the softmax; data sets with several labels an example have none.
      clip_norm: each head's gradient is clipped to this global norm.
      held_out: share of the training examples, of each class, that chooses epoch and rate.
      flip: probability of a mirrored training example. Off, because left and right are what some
        classes differ in ("pushing something from left to right").
      baselines: also k-NN and linear probe of the mean of the tokens and of the encoder's own
        pooled embedding; single labels only.
      mesh, checkpoint: see their classes.
      seed: initialisation, order of the data, held-out part.
      loader_workers: worker processes that decode records; 0 decodes in the training process.
      log_steps: metrics are written each so many steps.
      deterministic: have a GPU use deterministic kernels only.
      wandb_project: also log to this project of Weights & Biases; "" doesn't.
    """

    data: str
    input: str
    encoder: str
    ema: bool = False
    label: str = ""
    dtype: str = "auto"
    epochs: int = 10
    batch_size: int = 128
    lrs: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    end_lr: float = 1e-7
    label_smoothing: float = 0.1
    clip_norm: float = 5.0
    held_out: float = 0.1
    flip: float = 0.0
    baselines: bool = False
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    seed: int = 0
    loader_workers: int = 0
    log_steps: int = 50
    deterministic: bool = False
    wandb_project: str = ""

    def __post_init__(self) -> None:
        for field in ("data", "input", "encoder"):
            if not getattr(self, field):
                raise ValueError(
                    f"config.{field} is empty: name one, as in --config=FILE.py:{field}=..."
                )
        ranges = {
            "dtype": self.dtype in ("auto", "float32", "bfloat16"),
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "lrs": bool(self.lrs) and all(lr > self.end_lr for lr in self.lrs),
            "end_lr": self.end_lr >= 0,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "clip_norm": self.clip_norm > 0,
            "held_out": 0 < self.held_out < 1,
            "flip": 0 <= self.flip <= 1,
            "log_steps": self.log_steps >= 1,
        }
        for field, inside in ranges.items():
            require(inside, f"config.{field}", getattr(self, field))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AttentiveProbeConfig:
        """Checks a config file's values and freezes them.

        Raises:
          ValueError: a field is unknown, missing, of the wrong type or out of range.
        """
        return build(cls, values, "config")

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as JSON types; `from_dict` takes it back."""
        return dataclasses.asdict(self)
