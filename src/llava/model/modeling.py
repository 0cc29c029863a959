"""A causal language model that reads visuals: encoder, projector, language model.

Shape suffixes: B rows, S tokens of a row, V visuals, L patches of all visuals, K = P*P*3 values of
a patch, N visual tokens, D width of the encoder, E of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .config import LlavaConfig
from .encoding import VISUALS
from .fused_projector import FusedProjector, Seen
from .parts import assemble, build_options, build_towers, load_encoders
from .projectors import Projector, init_weights
from .splice import IGNORE, LlavaOutput, supervised_loss
from .vision import encoder_of, load_encoder, pixel_statistics
from .visual_embedding import VisualEmbedding

GENERATION_CONFIG = "generation_config.json"


class LlavaForConditionalGeneration(VisualEmbedding, PreTrainedModel):
    """An encoder's visuals spliced into the text of a causal language model."""

    config_class = LlavaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LlavaConfig) -> None:
        attention = config._attn_implementation  # None unless somebody asked for one
        super().__init__(config)
        if config.encoders:
            self.vision_tower = build_towers(config, attention)
            self.projector = FusedProjector(config)
            towers = [*self.vision_tower.values()]
        else:
            encoder = encoder_of(config.vision_config.model_type)
            self.vision_tower = encoder.model_class._from_config(config.vision_config)
            self.projector = Projector(config)
            towers = [self.vision_tower]
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        # transformers 4 does not gather them by itself; FSDP wraps these classes.
        parts = (*towers, self.language_model)
        self._no_split_modules = sorted({n for part in parts for n in part._no_split_modules or ()})
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        patches: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        grids: torch.Tensor | None = None,
        visual_features: torch.Tensor | dict[str, Seen] | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        frames: torch.Tensor | None = None,
        frame_counts: torch.Tensor | None = None,
        encoder_mask: torch.Tensor | None = None,
    ) -> LlavaOutput:
        """Logits, and the loss where there are labels.

        Args:
          input_ids: integers [B, S], with `VISUAL_TOKEN` at every visual token. The visuals follow
            each other as their tokens do, row after row; see `pooling.num_visual_tokens`.
          attention_mask: [B, S], 1 for tokens and 0 for padding, at either end.
          labels: integers [B, S], the ids of supervised tokens (not shifted), -100 elsewhere.
          patches: of all visuals: uint8 levels or normalised floating pixels, [L, P*P*3].
          positions: integers [L, 3], (t, h, w) of each patch.
          lengths: integers [V], patches of each visual.
          grids: integers [V, 2], rows and columns of patches in a frame of each visual.
          visual_features: what `encode_visuals` gave, in place of `patches` and `frames`.
          num_items_in_batch: supervised tokens of all batches that make up one step; the loss is
            the sum divided by it.
          frames: of all visuals, for encoders of frames: uint8 [total, S, S, 3], S that of
            `config.frame_rule`.
          frame_counts: integers [V], frames of each visual: `config.frame_rule.count` of a video, 1
            of an image.
          encoder_mask: bool [V, encoders], columns as in `config.encoder_names`; false leaves an
            encoder out of a visual, as if it were absent. None: all that see it.

        Raises:
          ValueError: visual tokens and visuals disagree, a shape does not fit, or a row is longer
            than the language model's context.
        """
        given = (patches, positions, lengths, grids, frames, frame_counts)
        embeds_BSE, weights_VE = self.embed(
            input_ids, visual_features, encoder_mask, **dict(zip(VISUALS, given, strict=True))
        )
        arguments: dict[str, Any] = {"inputs_embeds": embeds_BSE, "use_cache": False}
        if attention_mask is not None:
            arguments["attention_mask"] = attention_mask
            # Positions count tokens, so that padding on the left moves none.
            arguments["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        if labels is None:
            logits = self.language_model(**arguments).logits
            return LlavaOutput(logits=logits, fusion_weights=weights_VE)
        if labels.shape != input_ids.shape:
            raise ValueError(
                f"labels are {list(labels.shape)} for input_ids of {list(input_ids.shape)}"
            )
        # A vocabulary of 150,000 times 10,000 visual tokens would be gigabytes of unused logits.
        targets_BS = labels[:, 1:]
        kept = (targets_BS != IGNORE).any(0).nonzero()[:, 0]
        logits = self.language_model(**arguments, logits_to_keep=kept).logits
        loss = supervised_loss(logits, targets_BS[:, kept], num_items_in_batch)
        return LlavaOutput(loss, logits, kept, weights_VE)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        patches: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        grids: torch.Tensor | None = None,
        visual_features: torch.Tensor | dict[str, Seen] | None = None,
        frames: torch.Tensor | None = None,
        frame_counts: torch.Tensor | None = None,
        encoder_mask: torch.Tensor | None = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        max_new_tokens: int,
        **options: Any,
    ) -> torch.Tensor:
        """Continues each row; arguments as for `forward`, padding on the left.

        Args:
          inputs_embeds: what `embed` made of `input_ids` and the visuals, [B, S, E], in place of
            the visuals.
          max_new_tokens: most tokens of an answer.
          options: of transformers' `generate`, such as `do_sample` and `num_beams`.

        Returns:
          The new ids alone, [B, new]; rows that ended earlier are padded.

        Raises:
          ValueError: as for `forward`; also where rows are padded on the right, the context has no
            room for `max_new_tokens`, or visuals are given beside `inputs_embeds`.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("rows end in padding: generation needs padding on the left")
        self._check_context(input_ids.shape[1] + max_new_tokens)
        given = (patches, positions, lengths, grids, frames, frame_counts)
        if inputs_embeds is None:
            inputs_embeds, _ = self.embed(
                input_ids, visual_features, encoder_mask, **dict(zip(VISUALS, given, strict=True))
            )
        elif any(x is not None for x in (visual_features, encoder_mask, *given)):
            raise ValueError("inputs_embeds holds the visuals already: give one of the two")
        return self.language_model.generate(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            **options,
        )

    @classmethod
    def from_parts(
        cls,
        encoder_dir: str | Path,
        language_model: str | Path | PretrainedConfig,
        *,
        dtype: torch.dtype = torch.float32,
        attn_implementation: str | None = None,
        **fields: Any,
    ) -> LlavaForConditionalGeneration:
        """A new model: an exported encoder, a language model, and a freshly drawn projector.

        Args:
          encoder_dir: what `codecvit export` wrote.
          language_model: a folder or hub name of a causal language model; or a configuration, for
            one that is freshly drawn.
          dtype: of all parameters.
          attn_implementation: of encoder and language model; None is transformers' default.
          fields: of `LlavaConfig`. Without `template` the language model's type decides.

        Raises:
          ValueError: the folder is no export, or a field does not fit.
        """
        options = build_options(dtype, attn_implementation)
        tower = load_encoder(encoder_dir, **options)
        fields = {**pixel_statistics(encoder_dir), **fields}
        return assemble(
            cls, {"vision_config": tower.config}, tower, language_model, options, fields
        )

    @classmethod
    def from_encoders(
        cls,
        encoders: Sequence[str | Mapping[str, Any]],
        language_model: str | Path | PretrainedConfig,
        *,
        dtype: torch.dtype = torch.float32,
        attn_implementation: str | None = None,
        resize: str | None = None,
        **fields: Any,
    ) -> LlavaForConditionalGeneration:
        """A new model of several encoders, or of one that reads frames.

        Args:
          encoders: a text each, see `parts.FORM`; or name, kind, folder and further fields of
            `EncoderEntry`.
          language_model, dtype, attn_implementation, fields: as for `from_parts`.
          resize: how frames become square, for all encoders; None: as their kinds have it.

        Raises:
          ValueError: an encoder's folder, or a field, does not fit.
        """
        seed = int(torch.randint(1 << 62, ()))  # before anything that depends on the encoders
        options = build_options(dtype, attn_implementation)
        entries, towers = load_encoders(encoders, resize, options)
        parts = {"encoders": entries}
        return assemble(cls, parts, towers, language_model, options, fields, seed)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *args: Any, **options: Any
    ) -> LlavaForConditionalGeneration:
        """As in transformers; the dtype is that of the files unless `dtype` names another."""
        if "torch_dtype" not in options:
            options.setdefault("dtype", "auto")
        loaded = super().from_pretrained(folder, *args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if Path(folder, GENERATION_CONFIG).is_file():
            model.language_model.generation_config = GenerationConfig.from_pretrained(folder)
        return loaded

    def save_pretrained(
        self, save_directory: str | Path, is_main_process: bool = True, **options: Any
    ) -> None:
        """As in transformers, with the language model's generation defaults beside the weights.

        Raises:
          ValueError: parameters have several dtypes, which one folder would not give back.
        """
        dtypes = {p.dtype for p in self.parameters() if p.is_floating_point()}
        if len(dtypes) > 1:
            raise ValueError(
                f"parameters are of {sorted(map(str, dtypes))}: bring them to one dtype with "
                "model.to(dtype) before saving"
            )
        super().save_pretrained(save_directory, is_main_process=is_main_process, **options)
        generation = getattr(self.language_model, "generation_config", None)
        if is_main_process and generation is not None:
            generation.save_pretrained(save_directory)


AutoModel.register(LlavaConfig, LlavaForConditionalGeneration, exist_ok=True)
