"""The parts of a configuration that every trainer has: optimiser, mesh, checkpoints, logging."""

from __future__ import annotations

import dataclasses
import re

from .parse_config import require


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
      clip_norm: encoder gradients are clipped to this global norm.
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
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.lr > 0, "config.optim.lr", self.lr)
        require(0 < self.layer_decay <= 1, "config.optim.layer_decay", self.layer_decay)
        require(self.clip_norm > 0, "config.optim.clip_norm", self.clip_norm)
        for regex in self.freeze:
            try:
                re.compile(regex)
            except re.error as error:
                raise ValueError(f"config.optim.freeze: {regex!r} is no regex: {error}") from error


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
      heads: names of the heads to take over with the encoder; the others start at random.
      ema: take the encoder's moving average instead of its parameters.
    """

    checkpoint: str = ""
    heads: tuple[str, ...] = ()
    ema: bool = False

    def __post_init__(self) -> None:
        if not self.checkpoint and (self.heads or self.ema):
            raise ValueError(
                "config.init.heads and config.init.ema say what to take of config.init.checkpoint, "
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
