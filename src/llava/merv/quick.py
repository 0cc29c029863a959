"""Asking a model from Python in a few lines, with the calls of MERV's quick start.

    from codecvit.llava import load_vid

    vidlm = load_vid("models/merv-full").to("cuda", dtype=torch.bfloat16)
    builder = vidlm.get_prompt_builder()
    builder.add_turn(role="human", message="What happens?")
    print(vidlm.generate("clip.mp4", builder.get_prompt(), num_frames=[16, 16, 32, 16]))

The names are those of github.com/princetonvisualai/merv, so that a script written for it runs with
another import. scripts/llava/quick_start.py is one.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...codec.llava.options import MosaicOptions
from ...codec.llava.rows import IMAGE_TOKEN, VIDEO_TOKEN
from ...codec.llava.span import Span
from ..data.collate import collate
from ..data.examples import prompt_example, text_example
from ..data.frame_visuals import shown_image, shown_video
from ..data.visuals import Visual
from ..model.config import VISUAL_TOKEN, LlavaConfig
from ..model.modeling import LlavaForConditionalGeneration
from ..prompts import Prompt, PromptBuilder
from ..templates import PLACEHOLDER, TEMPLATES
from .published import find_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_UNLIMITED = 1 << 30


def load_vid(
    model_id_or_path: str | Path,
    hf_token: str | None = None,
    cache_dir: str | Path | None = None,
    get_model_cfg: bool = False,
    *,
    mosaics: str = "",
) -> VidLM | tuple[VidLM, LlavaConfig]:
    """Loads a model and its tokenizer, frozen, in the dtype of its files.

    Args:
      model_id_or_path: the folder of a model (a finished run's `model/`, or what `codecvit llava
        import merv` wrote), `owner/name` of such a folder on the Hugging Face hub, or a published
        id such as "merv-full", whose folder is looked for in `cache_dir`.
      hf_token: for hub names that need one.
      cache_dir: where hub files are kept, and imported models of a published id are; None: the
        hub's own cache, and the current folder.
      get_model_cfg: also return the model's configuration.
      mosaics: how a video is packed for an encoder that reads patches, in the words of `codecvit
        llava data`, as in `config.data.mosaics`; "" takes its defaults.

    Raises:
      ValueError: there is no such model here; for a published id the message says how to get it.
      OSError: the hub cannot be reached, or does not give it.
    """
    from transformers import AutoTokenizer

    from ..training.data import parse_mosaics

    folder = find_model(model_id_or_path, hf_token, cache_dir)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vidlm = VidLM(model, tokenizer, parse_mosaics(mosaics) or MosaicOptions())
    return (vidlm, model.config) if get_model_cfg else vidlm


class VidLM:
    """A model that is asked one question at a time.

    Args:
      model: any of this package; it is frozen and put into evaluation mode.
      tokenizer: of its language model.
      mosaics: how videos are packed for an encoder that reads patches.

    Raises:
      ValueError: the tokenizer does not fit the model's template.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        mosaics: MosaicOptions | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.mosaics = mosaics or MosaicOptions()
        self._template = TEMPLATES[model.config.template]
        self._template.check_tokenizer(tokenizer)

    @property
    def config(self) -> LlavaConfig:
        """Of the model."""
        return self.model.config

    @property
    def num_frames(self) -> list[int]:
        """Frames that each encoder sees of a video, as `generate` takes them."""
        return [entry.frames or self.mosaics.num_frames for entry in self.config.encoders] or [
            self.mosaics.num_frames
        ]

    def to(self, *args: Any, **kwargs: Any) -> VidLM:
        """Moves the model, as `torch.nn.Module.to`; returns this object."""
        self.model.to(*args, **kwargs)
        return self

    def get_prompt_builder(self, system_prompt: str | None = None) -> PromptBuilder:
        """Makes the text of a conversation in the model's template.

        Args:
          system_prompt: in place of the template's own.
        """
        return PromptBuilder(self._template, system_prompt)

    @torch.inference_mode()
    def generate(
        self,
        video: str | os.PathLike[str] | None,
        prompt_text: str,
        num_frames: Sequence[int] | None = None,
        clip_start_sec: float | None = None,
        clip_end_sec: float | None = None,
        *,
        max_new_tokens: int = 512,
        min_length: int = 0,
        do_sample: bool = False,
        temperature: float = 1.0,
        **options: Any,
    ) -> str:
        """Answers.

        Args:
          video: a video file, a folder of numbered images, an image (its suffix decides), or None
            for a question about nothing seen.
          prompt_text: what `get_prompt` of a builder gave, or text in the model's template. The
            visual goes where `<video>` or `<image>` stands. A builder's prompt needs neither: the
            visual then comes before its first message, as in training data; nor does any prompt
            where `splice` is "after_bos".
          num_frames: frames that each encoder sees; None takes the model's own. An encoder of whole
            frames knows no other number.
          clip_start_sec, clip_end_sec: the part of the video that is shown; None or NaN: no bound.
          max_new_tokens: most tokens of the answer.
          min_length: fewest tokens of the prompt's text and the answer together.
          do_sample: draw tokens, at `temperature`, instead of taking the likeliest.
          temperature: above 0.
          options: of transformers' `generate`, such as `num_beams` and `top_p`.

        Returns:
          The answer without special tokens and white space around it.

        Raises:
          ValueError: the prompt does not fit the visual or the context, a number of frames does not
            fit the model, or the model was trained on patches chosen in another way.
          MediaError: the file is missing or damaged beyond use.
        """
        if not do_sample and temperature != 1.0:
            raise ValueError(f"temperature = {temperature} has no effect without do_sample=True")
        if do_sample and temperature <= 0:
            raise ValueError(f"temperature = {temperature} must be above 0: or do_sample=False")
        bounds = [None if b is None or math.isnan(b) else b for b in (clip_start_sec, clip_end_sec)]
        visuals = []
        if video is not None:
            visuals = [self._look(os.fspath(video), num_frames, Span(*bounds))]
        token = IMAGE_TOKEN if video is not None and _is_image(video) else VIDEO_TOKEN
        room = getattr(self.config.text_config, "max_position_embeddings", None) or _UNLIMITED
        given = (visuals, self.tokenizer, self.config, room - max_new_tokens)
        if isinstance(prompt_text, Prompt):
            example = prompt_example(prompt_text.turns_with(token * bool(visuals)), *given)
        else:
            shown = self.config.splice == "after_bos" and not PLACEHOLDER.search(prompt_text)
            example = text_example(token * (shown and bool(visuals)) + prompt_text, *given)
        batch = collate([example], self.tokenizer.pad_token_id)
        del batch["labels"]
        sampling: dict[str, Any] = {"do_sample": do_sample, "temperature": temperature}
        if not do_sample:
            # The generation defaults of a language model may hold these.
            sampling = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        text = int((example.input_ids != VISUAL_TOKEN).sum())
        ids_BS = self.model.generate(
            **{k: None if t is None else t.to(self.model.device) for k, t in batch.items()},
            max_new_tokens=max_new_tokens,
            min_new_tokens=max(0, min_length - text),
            eos_token_id=self.tokenizer.encode(self._template.end, add_special_tokens=False)[-1:],
            pad_token_id=self.tokenizer.pad_token_id,
            **{**sampling, **options},
        )
        return self.tokenizer.decode(ids_BS[0], skip_special_tokens=True).strip()

    def _look(self, path: str, num_frames: Sequence[int] | None, span: Span) -> Visual:
        config = self.config
        options = self._mosaics(self.num_frames if num_frames is None else num_frames)
        if _is_image(path):
            return shown_image(path, config.image_rule, config.patch_size, config.frame_rule)
        if config.patch_size is not None and config.assets_hash not in (None, options.hash):
            raise ValueError(
                f"the model was trained on patches chosen by the options {config.assets_hash}, and "
                f"load_vid(mosaics=...) with num_frames make {options.hash}: say what "
                "config.data.mosaics of the training said"
            )
        return shown_video(path, options, config.patch_size, config.frame_rule, span)

    def _mosaics(self, num_frames: Sequence[int]) -> MosaicOptions:
        """How videos are packed, with the number of frames for the encoder that reads patches."""
        entries = self.config.encoders
        known = [entry.frames for entry in entries] or [0]  # 0: it reads patches
        fits = len(num_frames) == len(known)
        if not fits or any(n != k for n, k in zip(num_frames, known, strict=True) if k):
            names = ", ".join(entry.name for entry in entries) or "its one encoder"
            raise ValueError(
                f"num_frames = {list(num_frames)} does not fit the model, which has "
                f"{self.num_frames} (of {names}); another number is for an encoder of patches"
            )
        given = [n for n, k in zip(num_frames, known, strict=True) if not k]
        return dataclasses.replace(self.mosaics, num_frames=given[0]) if given else self.mosaics


def _is_image(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix.lower() in IMAGES
