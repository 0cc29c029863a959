"""A causal language model that reads visuals: encoder, projector, language model.

Shape suffixes: B rows, S tokens of a row, V visuals, L patches of all visuals, K = P*P*3 values of
a patch, N visual tokens, D width of the encoder, E of the language model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .config import VISUAL_TOKEN, LlavaConfig
from .pooling import arrange
from .projectors import Projector, init_weights
from .splice import IGNORE, LlavaOutput, check_counts, supervised_loss
from .templates import template_for
from .vision import encoder_of, load_encoder, pixel_statistics

GENERATION_CONFIG = "generation_config.json"


class LlavaForConditionalGeneration(PreTrainedModel):
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
        super().__init__(config)
        encoder = encoder_of(config.vision_config.model_type)
        self.vision_tower = encoder.model_class._from_config(config.vision_config)
        self.projector = Projector(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        # transformers 4 does not gather them by itself; FSDP wraps these classes.
        parts = (self.vision_tower, self.language_model)
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

    def vision_parameters(self) -> list[nn.Parameter]:
        """The encoder's parameters that features depend on.

        The blocks behind `vision_select_layer` and the pooling head never have a gradient.
        """
        encoder = encoder_of(self.config.vision_config.model_type)
        used = encoder.used(self.vision_tower, self.config.vision_select_layer)
        return [parameter for module in used for parameter in module.parameters()]

    def encode_visuals(
        self, patches: torch.Tensor, positions: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Features of the encoder, one per patch, which may be kept and given to `forward`.

        Args:
          patches: uint8 levels, or normalised floating pixels, [L, K], visual after visual.
          positions: integers [L, 3], (t, h, w).
          lengths: integers [V], patches of each visual.

        Returns:
          [L, D], the hidden state `vision_select_layer`.

        Raises:
          ValueError: a shape does not fit.
        """
        config = self.config
        side = config.vision_config.patch_size
        if patches.ndim != 2 or patches.shape[1] != 3 * side**2:
            raise ValueError(
                f"patches are {list(patches.shape)}; the encoder has patches of {side} x {side} "
                f"pixels and takes [total, {3 * side**2}]: resize each patch by itself"
            )
        if len(positions) != len(patches):
            raise ValueError(f"positions has {len(positions)} rows for {len(patches)} patches")
        if int(lengths.sum()) != len(patches):
            raise ValueError(f"lengths = {lengths.tolist()} add up to other than {len(patches)}")
        tower = self.vision_tower
        if not patches.is_floating_point():
            mean = torch.tensor(config.image_mean, device=patches.device)
            std = torch.tensor(config.image_std, device=patches.device)
            pixels = patches.view(len(patches), -1, 3).float() / 255
            patches = ((pixels - mean) / std).flatten(1)
        features = encoder_of(config.vision_config.model_type).features
        return features(
            tower, patches.to(tower.dtype), positions, lengths, config.vision_select_layer
        )

    def project_visuals(
        self,
        features: torch.Tensor,
        positions: torch.Tensor,
        lengths: torch.Tensor,
        grids: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Visual tokens of features [L, D]: [N, E], and how many each visual has, [V]."""
        places = (x.to(features.device) for x in (positions, lengths, grids))
        plan = arrange(self.config, *places)
        dtype = next(self.projector.parameters()).dtype
        tokens = self.projector(features.to(dtype), positions.to(features.device), plan)
        return tokens, plan.counts_V

    def embed(
        self,
        input_ids: torch.Tensor,
        patches: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        grids: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings [B, S, E] of text and visuals; arguments as for `forward`."""
        self._check_context(input_ids.shape[1])
        here_BS = input_ids == VISUAL_TOKEN
        embeds_BSE = self.get_input_embeddings()(input_ids.masked_fill(here_BS, 0))
        if patches is None and visual_features is None:
            if bool(here_BS.any()):
                raise ValueError(
                    f"input_ids has {int(here_BS.sum())} visual tokens ({VISUAL_TOKEN}), but there "
                    "are no visuals: give patches"
                )
            return embeds_BSE + self._idle() if self.training else embeds_BSE
        missing = {"positions": positions, "lengths": lengths, "grids": grids}
        if absent := [name for name, value in missing.items() if value is None]:
            raise ValueError(f"visuals need {', '.join(absent)} beside their patches")
        if visual_features is None:
            visual_features = self.encode_visuals(patches, positions, lengths)
        elif len(visual_features) != len(positions):
            raise ValueError(
                f"visual_features has {len(visual_features)} rows for {len(positions)} positions"
            )
        tokens_NE, counts_V = self.project_visuals(visual_features, positions, lengths, grids)
        check_counts(here_BS, counts_V)
        return embeds_BSE.masked_scatter(here_BS[..., None], tokens_NE.to(embeds_BSE.dtype))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        patches: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        grids: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
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
          visual_features: what `encode_visuals` gave, [L, D], in place of `patches`.
          num_items_in_batch: supervised tokens of all batches that make up one step; the loss is
            the sum divided by it.

        Raises:
          ValueError: visual tokens and visuals disagree, a shape does not fit, or a row is longer
            than the language model's context.
        """
        embeds_BSE = self.embed(input_ids, patches, positions, lengths, grids, visual_features)
        arguments: dict[str, Any] = {"inputs_embeds": embeds_BSE, "use_cache": False}
        if attention_mask is not None:
            arguments["attention_mask"] = attention_mask
            # Positions count tokens, so that padding on the left moves none.
            arguments["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        if labels is None:
            return LlavaOutput(logits=self.language_model(**arguments).logits)
        if labels.shape != input_ids.shape:
            raise ValueError(
                f"labels are {list(labels.shape)} for input_ids of {list(input_ids.shape)}"
            )
        # A vocabulary of 150,000 times 10,000 visual tokens would be gigabytes of unused logits.
        targets_BS = labels[:, 1:]
        kept = (targets_BS != IGNORE).any(0).nonzero()[:, 0]
        logits = self.language_model(**arguments, logits_to_keep=kept).logits
        loss = supervised_loss(logits, targets_BS[:, kept], num_items_in_batch)
        return LlavaOutput(loss=loss, logits=logits, logit_positions=kept)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        patches: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        grids: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        *,
        max_new_tokens: int,
        **options: Any,
    ) -> torch.Tensor:
        """Continues each row; arguments as for `forward`, padding on the left.

        Args:
          max_new_tokens: most tokens of an answer.
          options: of transformers' `generate`, such as `do_sample` and `num_beams`.

        Returns:
          The new ids alone, [B, new]; rows that ended earlier are padded.

        Raises:
          ValueError: as for `forward`; also where rows are padded on the right, or the context has
            no room for `max_new_tokens`.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("rows end in padding: generation needs padding on the left")
        self._check_context(input_ids.shape[1] + max_new_tokens)
        embeds_BSE = self.embed(input_ids, patches, positions, lengths, grids, visual_features)
        return self.language_model.generate(
            inputs_embeds=embeds_BSE,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            **options,
        )

    def _check_context(self, size: int) -> None:
        limit = getattr(self.config.text_config, "max_position_embeddings", None)
        if limit is not None and size > limit:
            raise ValueError(
                f"a row of {size} tokens (text, visual tokens and new ones) exceeds the language "
                f"model's context of {limit}: use fewer visual tokens or shorter texts"
            )

    def _idle(self) -> torch.Tensor:
        """A zero that depends on all trained parameters of encoder and projector.

        Batches of text alone would otherwise leave them without gradients, and processes that
        have to agree on the gradients would wait for each other.
        """
        device, side = self.device, self.config.vision_config.patch_size
        positions = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]], device=device)
        lengths, grids = torch.tensor([4], device=device), torch.tensor([[2, 2]], device=device)
        patches = torch.zeros(4, 3 * side**2, dtype=torch.uint8, device=device)
        features = self.encode_visuals(patches, positions, lengths)
        return 0.0 * self.project_visuals(features, positions, lengths, grids)[0].sum()

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
        options: dict[str, Any] = {"dtype": dtype}
        if attn_implementation is not None:
            options["attn_implementation"] = attn_implementation
        tower = load_encoder(encoder_dir, **options)
        if isinstance(language_model, PretrainedConfig):
            text = AutoModelForCausalLM.from_config(language_model, **options)
        else:
            text = AutoModelForCausalLM.from_pretrained(language_model, **options)
        fields = {**pixel_statistics(encoder_dir), **fields}
        if "template" not in fields:
            fields["template"] = template_for(text.config).name
        config = LlavaConfig(
            tower.config, text.config, attn_implementation=attn_implementation, **fields
        )
        with torch.device("meta"):
            model = cls(config)
        model.projector = Projector(config).to(dtype)
        model.projector.apply(init_weights)
        model.vision_tower, model.language_model = tower, text
        return model.eval()

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
