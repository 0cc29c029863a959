"""The models of the LLaVA demo: how one begins, and the same one with part of its sight taken away.

A run starts from an exported encoder, a projector and a tiny Qwen2, the last two drawn from a seed.
Nothing here is meant for models that anybody would use.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2Config

from .data.visuals import Visual
from .mcq.answer import ModelAnswerer
from .mcq.runner import Answer, Asked
from .model.modeling import LlavaForConditionalGeneration
from .templates import TEMPLATES

TEMPLATE = "chatml"
CONTROLS = ("zeroed", "permuted", "first-frame")
_WITHOUT = "without-"

_CODE_SCALE = 3.0  # standard deviation that the position code adds to features, at the start
_HEAD = 32  # width of an attention head
# Standard deviation of the language model's weights. The usual 0.02 is meant for widths of
# thousands: at 64 every layer would say next to nothing, and a few hundred steps go by before it
# says more.
_SPREAD = 0.09
_POOL = (8, 8, 8)  # a cell per patch: 8 frames of 8 x 8 patches


def demo_tokenizer(texts: Iterable[str], size: int = 420) -> PreTrainedTokenizerFast:
    """A byte-level BPE for ChatML, trained on `texts`: any text can be read, and theirs is short.

    Args:
      texts: what it should be good at.
      size: most tokens, at least 259.
    """
    specials = ["<|endoftext|>", *TEMPLATES[TEMPLATE].specials]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(text, special=True) for text in specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=specials[-1], pad_token=specials[0]
    )


def make_start(
    out: str | Path,
    encoder: str | Path | Sequence[str],
    texts: Iterable[str],
    seed: int,
    width: int = 64,
    layers: int = 3,
    select_layer: int = -2,
    pool: tuple[int, int, int] = _POOL,
    **fields: Any,
) -> LlavaForConditionalGeneration:
    """Writes the model that a run starts from, with its tokenizer.

    The projector is a convolution over neighbouring patches, in place and time, then an MLP; each
    patch stays a token of its own. What moves where shows in which neighbours a patch has: without
    the convolution a few thousand clips are not enough to find out. The position code begins as a
    random map that outweighs the features, and the convolution is scaled to match; from zero, its
    usual start, it would come too late.

    Args:
      out: folder of the model.
      encoder: what `codecvit export` wrote; or several encoders, a text each, as `from_encoders`
        takes them: their layers stand there.
      texts: that the tokenizer is trained on.
      seed: of language model and projector.
      width: of the language model, a multiple of 32.
      layers: of the language model.
      select_layer: which hidden state of the one encoder is read.
      pool: cells (t, h, w); the default has one for every patch.
      fields: of `LlavaConfig`, in place of those that it would have.

    Raises:
      ValueError: the encoder's folder is no export, or a size does not fit.
    """
    if width < 1 or width % _HEAD:
        raise ValueError(f"width = {width} must be a multiple of {_HEAD}")
    tokenizer = demo_tokenizer(texts)
    torch.manual_seed(seed)
    language = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // _HEAD,
        num_key_value_heads=width // _HEAD,
        initializer_range=_SPREAD,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    own = {"projector": "3dconv+mlp2x_gelu", "position_embedding": "sincos", "pool_empty": "drop"}
    fields = {**own, "pool": pool, **fields}
    if isinstance(encoder, str | Path):
        fields["vision_select_layer"] = select_layer
        model = LlavaForConditionalGeneration.from_parts(encoder, language, **fields)
        projectors = [model.projector]
    else:
        model = LlavaForConditionalGeneration.from_encoders(encoder, language, **fields)
        projectors = [*model.projector.encoders.values()]
    with torch.no_grad():
        for projector in projectors:
            code = projector.code.weight
            # Half of the code's entries add up, on average, to a variance of half their number.
            nn.init.normal_(code, std=_CODE_SCALE * (2 / code.shape[1]) ** 0.5)
            projector.conv.conv.weight /= _CODE_SCALE
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model


class ControlledAnswerer(ModelAnswerer):
    """A model that sees less than it is shown.

    Args:
      answerer: the model; from here on only this one is to be used.
      control: "zeroed": every visual token is zero; "permuted": the times of a clip are exchanged
        among each other; "first-frame": the patches at t = 0 alone; "without-NAME": that one of
        several encoders is absent, or, where each has tokens of its own, that these are zero.
      seed: of the permutations, which follow from it and the positions of a clip alone.

    Raises:
      ValueError: an unknown control.
    """

    def __init__(self, answerer: ModelAnswerer, control: str, seed: int = 0) -> None:
        names = answerer.config.encoder_names
        known = (*CONTROLS, *(f"{_WITHOUT}{name}" for name in names))
        if control not in known:
            raise ValueError(f"control = {control!r} must be one of {', '.join(known)}")
        self.__dict__.update(answerer.__dict__)
        self._control, self._seed = control, seed
        if control == "zeroed":
            self._model.projector.register_forward_hook(_zeros)
        if control.startswith(_WITHOUT):
            self._leave_out(control.removeprefix(_WITHOUT))

    def describe(self) -> dict[str, Any]:
        """As that of the model, and what it was denied."""
        return {**super().describe(), "control": self._control, "control_seed": self._seed}

    def generate(self, asked: Sequence[Asked]) -> list[Answer]:
        """See `Answerer.generate`."""
        return super().generate(self._changed(asked))

    def loglik(self, asked: Sequence[Asked]) -> list[Answer]:
        """See `Answerer.loglik`."""
        return super().loglik(self._changed(asked))

    def _leave_out(self, name: str) -> None:
        projector = self._model.projector
        if self.config.in_turn:
            # Absent tokens would move those behind them to places that training never had.
            projector.encoders[name].register_forward_hook(_zeros)
            return
        mask = functools.partial(_mask, self.config.encoder_names.index(name))
        projector.register_forward_pre_hook(mask)

    def _changed(self, asked: Sequence[Asked]) -> Sequence[Asked]:
        if self._control == "zeroed" or self._control.startswith(_WITHOUT):
            return asked
        change = first_frame if self._control == "first-frame" else self._permute
        return [dataclasses.replace(item, visual=change(item.visual)) for item in asked]

    def _permute(self, visual: Visual) -> Visual:
        return permute_times(visual, self._seed)


def permute_times(visual: Visual, seed: int) -> Visual:
    """The same patches with the times of the clip exchanged, in the order of their new times.

    Every patch of one time gets the same other time; no time stays where it was, if there are two.
    Groups keep their sizes. Frames, where there are any, are exchanged in the same way.
    """
    times, step_L = np.unique(visual.positions[:, 0], return_inverse=True)
    digest = hashlib.sha256(visual.positions.tobytes()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
    moved = times[_derangement(len(times), rng)]
    positions = visual.positions.copy()
    positions[:, 0] = moved[step_L.reshape(-1)]
    place_L = np.argsort(positions[:, 0], kind="stable")
    frames = visual.frames
    if frames is not None:
        order = _derangement(len(frames), rng)
        frames = dataclasses.replace(frames, pixels=frames.pixels[order])
    return dataclasses.replace(
        visual,
        patches=visual.patches[place_L],
        positions=positions[place_L],
        frames=frames,
    )


def _derangement(count: int, rng: np.random.Generator) -> np.ndarray:
    """A cycle through 0..count-1 in a drawn order."""
    order = rng.permutation(count)
    moved = np.empty_like(order)
    moved[order] = np.roll(order, 1)
    return moved


def first_frame(visual: Visual) -> Visual:
    """The patches at t = 0 alone, as one group; of frames the first, as often as there were any."""
    frames = visual.frames
    if frames is not None:
        frames = dataclasses.replace(frames, pixels=np.repeat(frames.pixels[:1], len(frames), 0))
    kept = visual.positions[:, 0] == 0
    if len(visual) and not kept.any():
        raise ValueError("the visual has no patch at t = 0")
    return dataclasses.replace(
        visual,
        patches=visual.patches[kept],
        positions=visual.positions[kept],
        groups=np.zeros(int(kept.sum()), np.int32),
        seconds=None if visual.seconds is None else visual.seconds[:1],
        frames=frames,
    )


def _zeros(module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):  # of several encoders: tokens, their counts, weights
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def _mask(absent: int, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, torch.Tensor]:
    """The projector's arguments with column `absent` of the mask false."""
    seen = inputs[0]
    visuals = len(next(iter(seen.values())).lengths)
    mask_VE = torch.ones(visuals, len(seen), dtype=torch.bool)
    mask_VE[:, absent] = False
    return seen, mask_VE
