"""Configuration of a LLaVA training run, checked once; imports neither torch nor jax."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...config_values import build, require

PARTS = ("vision_tower", "projector", "language_model")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("auto", "bf16", "fp32")
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Where the model comes from, and what it is made of; None leaves a choice to `LlavaConfig`.

    With `config.init` the two folders stay empty, and an option that is given must be that of the
    earlier run; only `timestamps`, the size of images and `template`, which no weight depends on,
    may change.

    Attributes:
      encoder: folder of `codecvit export`: one encoder, which reads patches.
      encoders: in its place, of several or of one that reads frames, NAME=KIND:FOLDER@FRAMES each;
        see docs/llava.md.
      resize: of their frames, "squash" or "crop"; None: as their kinds have it.
      language_model: folder or hub name of a Hugging Face causal LM, its tokenizer with it.
      attn_implementation: of encoder and language model: sdpa, eager, flash_attention_2 (an extra
        package), flex_attention.
      projector, pool, pool_level, pool_empty, pool_first, position_embedding,
        vision_select_layer, timestamps, fusion, fusion_bias, fusion_query: as in `LlavaConfig`.
      image_size, max_pixels: likewise; with `init` they may change too.
      template: of conversations; None keeps that of `init`, except that "plain", which captions
        have in the projector stage, gives way to the language model's own.
    """

    encoder: str = ""
    encoders: tuple[str, ...] = ()
    resize: str | None = None
    language_model: str = ""
    attn_implementation: str = "sdpa"
    projector: str | None = None
    pool: tuple[int, ...] | None = None
    pool_level: int | None = None
    pool_empty: str | None = None
    pool_first: bool | None = None
    position_embedding: str | None = None
    vision_select_layer: int | None = None
    timestamps: bool | None = None
    fusion: str | None = None
    fusion_bias: bool | None = None
    fusion_query: int | None = None
    image_size: int | None = None
    max_pixels: int | None = None
    template: str | None = None

    def options(self) -> dict[str, Any]:
        """The fields of `LlavaConfig` that are given."""
        own = ("encoder", "encoders", "resize", "language_model", "attn_implementation")
        found = {key: value for key, value in dataclasses.asdict(self).items() if key not in own}
        return {key: value for key, value in found.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What is trained on.

    Attributes:
      recipe: YAML of data sets and their sampling strategies, or one JSON or JSONL file of rows.
      root: folder or URL that the recipe's paths are relative to; "" takes the recipe's own.
      max_length: most tokens of a row, visual ones included; longer rows are failures.
      mosaics: options of `codecvit llava data` in one text, such as "--size 224 --patch 14
        --lossless": the mosaics have to be made with them, and plain videos are packed with them.
        "" takes mosaics as they are and allows no plain videos.
      workers: processes that read and pack, per training process; 0 reads in between steps.
    """

    recipe: str = ""
    root: str = ""
    max_length: int = 16_384
    mosaics: str = ""
    workers: int = 2


@dataclasses.dataclass(frozen=True)
class OptimOptions:
    """AdamW with one rate per part.

    Attributes:
      lr: peak rate of every part that has none of its own.
      vision_tower_lr, projector_lr, language_model_lr: peak rate of a part; None takes `lr`, 0
        trains it not at all. With LoRA that of the language model is its adapter's.
      freeze: regexes over parameter names such as "language_model.*embed_tokens"; what matches is
        not trained either.
      weight_decay: of matrices; norms and biases have none.
      b1, b2, eps: of Adam.
      schedule: cosine or linear down to 0, or constant.
      warmup: share of the steps in which the rate rises, 0..1.
      clip_norm: largest norm of the gradient of all that is trained; 0 doesn't clip.
    """

    lr: float = 2e-5
    vision_tower_lr: float | None = None
    projector_lr: float | None = None
    language_model_lr: float | None = None
    freeze: tuple[str, ...] = ()
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    schedule: str = "cosine"
    warmup: float = 0.03
    clip_norm: float = 1.0

    def rates(self) -> dict[str, float]:
        """Peak rate of each part, 0 where it is not trained."""
        own = {part: getattr(self, f"{part}_lr") for part in PARTS}
        return {part: self.lr if rate is None else rate for part, rate in own.items()}


@dataclasses.dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters in the language model (Hu et al. 2021, arXiv 2106.09685).

    Attributes:
      rank: r; 0 trains the language model itself.
      alpha: the adapter's output is scaled by alpha / rank.
      dropout: of its input, in training.
      targets: names of linear layers; empty: every linear layer of the language model except its
        output layer.
      after_lora: what becomes of the adapter when `config.init` is a LoRA run itself: "merge" puts
        it into the weights and begins a new one, "continue" trains it further.
    """

    rank: int = 0
    alpha: float = 256.0
    dropout: float = 0.05
    targets: tuple[str, ...] = ()
    after_lora: str = "merge"


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """Attributes: every_steps; keep, the number of checkpoints that stay."""

    every_steps: int = 500
    keep: int = 2


@dataclasses.dataclass(frozen=True)
class LlavaTrainConfig:
    """A run. Its rates say which stage it is: 0 is what the projector stage gives all else.

    Attributes:
      model, data, optim, lora, checkpoint: see their classes.
      init: folder of an earlier, finished run, or a model folder, to start from.
      init_projector: safetensors file with the projector's weights, also in LLaVA's names.
      batch_size: rows of a step over all processes.
      micro_batch_size: rows that a process takes at once; the rest is accumulated.
      epochs: passes over the mixture; steps: length of the run instead, 0 goes by `epochs`.
      precision: bf16 (autocast; trained weights stay float32), fp32; auto: bf16 on a GPU.
      gradient_checkpointing: recompute activations in the backward pass.
      save_dtype: of the finished model; float32 keeps what was trained as it is.
      max_failures: largest share of rows that may be unusable, 0..1, before the run gives up.
      max_nan_steps: steps in a row without a finite loss and gradient before it gives up.
      log_steps: steps between lines of metrics.
      seed: of new weights, order of the data, dropout.
      wandb_project: also log to Weights & Biases.
    """

    model: ModelOptions = ModelOptions()
    data: DataOptions = DataOptions()
    optim: OptimOptions = OptimOptions()
    lora: LoraOptions = LoraOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    init: str = ""
    init_projector: str = ""
    batch_size: int = 128
    micro_batch_size: int = 1
    epochs: float = 1.0
    steps: int = 0
    precision: str = "auto"
    gradient_checkpointing: bool = True
    save_dtype: str = "float32"
    max_failures: float = 0.01
    max_nan_steps: int = 10
    log_steps: int = 10
    seed: int = 0
    wandb_project: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def parse_config(values: dict[str, Any]) -> LlavaTrainConfig:
    """Checks a config file's values and freezes them.

    Raises:
      ValueError: a field is unknown, missing, of another type or out of range.
    """
    config = build(LlavaTrainConfig, values, "config")
    model, optim, lora = config.model, config.optim, config.lora
    _one_of("model.attn_implementation", model.attn_implementation, _ATTENTION)
    if config.init:
        given = model.encoder or model.encoders or model.resize or model.language_model
        require(
            not given, "config.model.encoder or language_model", given, "config.init gives both"
        )
    else:
        fields = ("encoder", "language_model")
        for field in fields[1:] if model.encoders else fields:
            value = getattr(model, field)
            require(
                bool(value), f"config.model.{field}", value, "name a folder, or give config.init"
            )
        both = model.encoder and model.encoders
        require(not both, "config.model.encoder", model.encoder, "config.model.encoders is given")
        alone = model.resize and not model.encoders
        require(not alone, "config.model.resize", model.resize, "it is for config.model.encoders")
    require(bool(config.data.recipe), "config.data.recipe", "", "name a YAML, JSON or JSONL file")
    require(config.data.max_length > 0, "config.data.max_length", config.data.max_length)
    require(config.data.workers >= 0, "config.data.workers", config.data.workers)
    for part, rate in optim.rates().items():
        require(rate >= 0, f"config.optim.{part}_lr", rate)
    require(any(optim.rates().values()), "config.optim.lr", optim.lr, "nothing would be trained")
    for name in ("weight_decay", "clip_norm", "eps"):
        require(getattr(optim, name) >= 0, f"config.optim.{name}", getattr(optim, name))
    for name in ("b1", "b2"):
        require(0 <= getattr(optim, name) < 1, f"config.optim.{name}", getattr(optim, name))
    require(0 <= optim.warmup <= 1, "config.optim.warmup", optim.warmup, "it is a share of the run")
    _one_of("optim.schedule", optim.schedule, SCHEDULES)
    require(lora.rank >= 0, "config.lora.rank", lora.rank)
    require(0 <= lora.dropout < 1, "config.lora.dropout", lora.dropout)
    require(lora.alpha > 0, "config.lora.alpha", lora.alpha)
    _one_of("lora.after_lora", lora.after_lora, ("merge", "continue"))
    if lora.rank:
        rate = optim.rates()["language_model"]
        require(
            rate > 0, "config.optim.language_model_lr", rate, "the adapter would not be trained"
        )
    for name in ("batch_size", "micro_batch_size", "log_steps", "max_nan_steps"):
        require(getattr(config, name) > 0, f"config.{name}", getattr(config, name))
    require(0 <= config.max_failures <= 1, "config.max_failures", config.max_failures, "a share")
    require(config.steps >= 0, "config.steps", config.steps)
    require(config.steps > 0 or config.epochs > 0, "config.epochs", config.epochs)
    require(config.checkpoint.every_steps > 0, "config.checkpoint.every_steps", config.checkpoint)
    require(config.checkpoint.keep > 0, "config.checkpoint.keep", config.checkpoint.keep)
    _one_of("precision", config.precision, PRECISIONS)
    _one_of("save_dtype", config.save_dtype, DTYPES)
    return config


_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    require(value in known, f"config.{name}", value, f"one of {', '.join(known)}")
