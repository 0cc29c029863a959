"""What the configuration of every trainer has: optimiser, mesh, checkpoints, logging."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from ..config_values import require


def _require_moment(path: str, dtype: str) -> None:
    require(dtype in ("float32", "bfloat16"), f"{path}.first_moment_dtype", dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW or Muon with a warm-up and a named schedule.

    Attributes:
      name: "adamw", or "muon": the matrices of the blocks take orthogonalised momentum steps
        (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), all else AdamW.
      lr: peak learning rate.
      muon_lr: peak learning rate of the matrices, in units of their spectral norm.
      schedule: linear (as the published runs were), poly2, cosine, rsqrt, wsd or constant (see
        `optim.SCHEDULES`).
      warmup_steps: steps of linear warm-up; step 0 already trains at lr/warmup_steps.
      cooldown_steps: the last steps of wsd and rsqrt, over which the rate falls linearly to 0.
      weight_decay: decoupled decay of the encoder's kernels; norms, biases and the probe are exempt
        by name.
      layer_decay: factor on the encoder's rate per layer below the top (BEiT, arXiv 2106.08254);
        1 trains all layers at one rate.
      b1, b2, eps: Adam's constants.
      clip_norm: encoder gradients are clipped to this global norm; 0 clips nothing.
      first_moment_dtype: float32, or bfloat16 to store the encoder's first moment in half the
        memory.
      freeze: regexes; a parameter in whose path (encoder/blocks/attn/qkv/kernel or
        heads/main/centres) one of them is found stays as it is, and needs no gradient and no
        optimiser state.
    """

    name: str = "adamw"
    lr: float = 1e-3
    muon_lr: float = 0.02
    schedule: str = "linear"
    warmup_steps: int = 0
    cooldown_steps: int = 0
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 5.0
    first_moment_dtype: str = "float32"
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.lr > 0, "config.optim.lr", self.lr)
        require(self.muon_lr > 0, "config.optim.muon_lr", self.muon_lr)
        # Outside of these Adam makes steps of finite gradients that are not finite themselves.
        require(0 <= self.b1 < 1, "config.optim.b1", self.b1)
        require(0 <= self.b2 < 1, "config.optim.b2", self.b2)
        require(self.eps > 0, "config.optim.eps", self.eps)
        require(0 < self.layer_decay <= 1, "config.optim.layer_decay", self.layer_decay)
        require(self.clip_norm >= 0, "config.optim.clip_norm", self.clip_norm)
        _require_moment("config.optim", self.first_moment_dtype)
        for regex in self.freeze:
            try:
                re.compile(regex)
            except re.error as error:
                raise ValueError(f"config.optim.freeze: {regex!r} is no regex: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """How a part that is trained beside the encoder differs from it in the optimiser.

    Attributes:
      lr_mult: factor on the learning rate.
      weight_decay: decoupled weight decay of kernels and class centres.
      clip_norm: gradients of this part are clipped to this global norm; 0 clips nothing.
      first_moment_dtype: float32, or bfloat16 to store Adam's first moment in half the memory.
    """

    lr_mult: float = 1.0
    weight_decay: float = 0.05
    clip_norm: float = 5.0
    first_moment_dtype: str = "float32"

    def check(self, path: str) -> None:
        """Raises ValueError for a value out of range; `path` is the dotted name of the group."""
        require(self.clip_norm >= 0, f"{path}.clip_norm", self.clip_norm)
        _require_moment(path, self.first_moment_dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the device mesh's axes and the rules that shard parameters over them.

    Attributes:
      data, fsdp, tensor: axis sizes; one of them may be -1 and takes the devices that are left.
      rules: (regex, spec) pairs, first match wins: the regex is searched in a parameter's path, the
        spec names a mesh axis, several ("data,fsdp"), or "" per array dimension.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: tuple[tuple[str, tuple[str, ...]], ...] = (
        (r"heads/.*centres", ("data,fsdp,tensor", "")),
        (r"blocks/(attn/qkv|mlp/fc1)/kernel", ("", "fsdp", "tensor")),
        (r"blocks/(attn/out|mlp/fc2)/kernel", ("", "tensor", "fsdp")),
        (r"blocks/(attn/qkv|mlp/fc1)/bias", ("", "tensor")),
        (r"patch_embed/kernel", ("fsdp", "tensor")),
        (r"head/.*kernel", ("fsdp", "tensor")),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept.

    Attributes:
      every_steps: a checkpoint each so many steps; the last step always writes one.
      keep: the newest so many are kept.
      keep_every_steps: besides, those of every so many steps are kept for good; 0 keeps none.
    """

    every_steps: int = 1000
    keep: int = 3
    keep_every_steps: int = 0

    def __post_init__(self) -> None:
        require(self.every_steps >= 1, "config.checkpoint.every_steps", self.every_steps)
        require(self.keep >= 1, "config.checkpoint.keep", self.keep)
        require(
            self.keep_every_steps >= 0 and self.keep_every_steps % self.every_steps == 0,
            "config.checkpoint.keep_every_steps",
            self.keep_every_steps,
            f"it must be a multiple of every_steps = {self.every_steps}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """An exponential moving average of the encoder's parameters, beside them.

    Attributes:
      enabled: keep one.
      decay: ema <- decay * ema + (1 - decay) * parameters after each step; 0 makes them equal.
      evaluate: the probes embed with the average instead of the parameters.
    """

    enabled: bool = False
    decay: float = 0.9999
    evaluate: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, "config.ema.decay", self.decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Where the parameters of a fresh run come from; a run that continues itself ignores it.

    Attributes:
      checkpoint: a work directory or one checkpoint of it; "" starts at random.
      parts: what to take over beside the encoder, by the names of the parameters' subtrees, such
        as "heads/main" or "text"; the others start at random.
      ema: take the encoder's moving average instead of its parameters.
    """

    checkpoint: str = ""
    parts: tuple[str, ...] = ()
    ema: bool = False

    def __post_init__(self) -> None:
        if not self.checkpoint and (self.parts or self.ema):
            raise ValueError(
                "config.init.parts and config.init.ema say what to take of config.init.checkpoint, "
                "which is empty"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A window of steps that jax.profiler records into WORKDIR/profile.

    Attributes:
      start_step: first step of the window; the steps before it compile and warm up.
      num_steps: its length; 0 records nothing.
    """

    start_step: int = 10
    num_steps: int = 0

    def __post_init__(self) -> None:
        require(self.start_step >= 1, "config.profile.start_step", self.start_step)
        require(self.num_steps >= 0, "config.profile.num_steps", self.num_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run that trains an encoder is told.

    Attributes:
      total_steps: optimiser steps of the whole run.
      optim, mesh, checkpoint, ema, init, profile: see their classes.
      seed: initialisation, order of the data and every draw.
      log_steps: metrics are fetched from the devices and written each so many steps.
      max_nan_steps: the run stops after so many non-finite steps in a row, at the next log line;
        each leaves the state as it was.
      max_bad_records: the run stops once more rows than this were unreadable, at the next log line;
        a damaged record counts again in each epoch.
      spike_deviations: a loss more than so many standard deviations above its running mean counts
        as a spike.
      peak_tflops: peak of one device in TFLOP/s for the MFU; 0 looks the device kind up.
      deterministic: have a GPU use deterministic kernels only: the same seed gives the same bits,
        more slowly. A CPU and a TPU always do.
      wandb_project: also log to this project of Weights & Biases (extra `wandb`); "" doesn't.
    """

    total_steps: int
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    ema: EmaConfig = EmaConfig()
    init: InitConfig = InitConfig()
    profile: ProfileConfig = ProfileConfig()
    seed: int = 0
    log_steps: int = 50
    max_nan_steps: int = 10
    max_bad_records: int = 100
    spike_deviations: float = 6.0
    peak_tflops: float = 0.0
    deterministic: bool = False
    wandb_project: str = ""

    def __post_init__(self) -> None:
        require(self.total_steps >= 0, "config.total_steps", self.total_steps)
        require(self.log_steps >= 1, "config.log_steps", self.log_steps)
        require(self.seed >= 0, "config.seed", self.seed)
        require(self.max_nan_steps >= 1, "config.max_nan_steps", self.max_nan_steps)
        require(self.max_bad_records >= 0, "config.max_bad_records", self.max_bad_records)
        require(self.spike_deviations > 0, "config.spike_deviations", self.spike_deviations)

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as JSON types; `from_dict` takes it back."""
        return dataclasses.asdict(self)
