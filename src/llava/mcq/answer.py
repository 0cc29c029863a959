"""A trained model as an `Answerer`: batches of questions in, replies or letter scores out.

Shape suffixes: B rows, S tokens, V visuals, E the width of a token (behind V: encoders), K
supervised places, v the vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..data.collate import collate
from ..data.examples import IGNORED, Example, make_example, prompt_example
from ..data.visuals import Visual
from ..model.config import VISUAL_TOKEN, LlavaConfig
from ..model.encoding import VISUALS
from ..model.fused_projector import weights_by_name
from ..model.modeling import LlavaForConditionalGeneration
from ..templates import TEMPLATES
from .runner import Answer, Asked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = tuple[list[dict[str, str]], list[Visual]]

VIDEO = "<video>\n"
_EDGE = 1 << 20  # bytes at either end of a weight file that its fingerprint is made of
_UNLIMITED = 1 << 30
# The generation defaults of a language model may sample.
_GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "num_beams": 1}


class ModelAnswerer:
    """Asks a `LlavaForConditionalGeneration`; greedy, so the same question gets the same reply.

    Args:
      model: in evaluation mode.
      tokenizer: of its language model.
      max_new_tokens: of a reply.
      source: further entries of `describe`.

    Raises:
      ValueError: the tokenizer does not fit the model's template.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int = 64,
        source: dict[str, Any] | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {max_new_tokens} must be at least 1")
        self._model, self._tokenizer = model.eval(), tokenizer
        self._max_new_tokens, self._source = max_new_tokens, source or {}
        self._template = TEMPLATES[model.config.template]
        self._template.check_tokenizer(tokenizer)
        context = getattr(model.config.text_config, "max_position_embeddings", None)
        self._context = context or _UNLIMITED

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | None = None,
        dtype: str = "bfloat16",
        max_new_tokens: int = 64,
    ) -> ModelAnswerer:
        """Loads a model and its tokenizer.

        Args:
          folder: as `save_pretrained` wrote it, with the tokenizer's files.
          device: None takes a GPU if there is one.
          dtype: name of a torch dtype.
          max_new_tokens: of a reply.

        Raises:
          ValueError, OSError: the folder does not hold both.
        """
        from transformers import AutoTokenizer

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no config.json: it is no folder of a saved model")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
        source = {"path": str(folder.absolute()), "fingerprint": fingerprint(folder)}
        return cls(model.to(device), tokenizer, max_new_tokens, source)

    @property
    def expected_hash(self) -> str | None:
        """Hash of the mosaic options that the model was trained with, if its configuration says."""
        return getattr(self._model.config, "assets_hash", None)

    @property
    def config(self) -> LlavaConfig:
        """Of the model."""
        return self._model.config

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the language model."""
        return self._tokenizer

    @property
    def patch(self) -> int | None:
        """Side of the encoder's patch in pixels; None where no encoder reads patches."""
        return self._model.config.patch_size

    def describe(self) -> dict[str, Any]:
        """See `Answerer.describe`."""
        turns = [{"from": "human", "value": f"{VIDEO}{{prompt}}"}]
        return {
            **self._source,
            "type": self._model.config.model_type,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "template": self._template.name,
            "conversation": self._template.prompt(turns),
            "max_new_tokens": self._max_new_tokens,
        }

    def generate(self, asked: Sequence[Asked]) -> list[Answer]:
        """See `Answerer.generate`."""
        return self.converse([(_turns(item), [item.visual]) for item in asked])

    @torch.inference_mode()
    def converse(
        self, asked: Sequence[Conversation], max_new_tokens: int | None = None, **options: Any
    ) -> list[Answer]:
        """Replies to conversations with any number of visuals.

        Args:
          asked: (turns, visuals) each, as `prompt_example` takes them.
          max_new_tokens: of a reply; None: as the answerer was made.
          options: of transformers' `generate`, in place of the greedy ones.
        """
        limit = max_new_tokens or self._max_new_tokens
        room = self._context - limit
        examples = [
            prompt_example(turns, visuals, self._tokenizer, self._model.config, room)
            for turns, visuals in asked
        ]
        batch = self._batch(examples)
        del batch["labels"]
        visuals = {name: batch.pop(name) for name in VISUALS if name in batch}
        embeds_BSE, weights_VE = self._model.embed(batch["input_ids"], **visuals)
        weights = weights_by_name(self.config, weights_VE, [len(e.visuals) for e in examples])
        ids_BS = self._model.generate(
            **batch,
            inputs_embeds=embeds_BSE,
            max_new_tokens=limit,
            eos_token_id=self._end()[-1:],
            pad_token_id=self._tokenizer.pad_token_id,
            **{**_GREEDY, **options},
        )
        replies = self._tokenizer.batch_decode(ids_BS, skip_special_tokens=True)
        return [
            Answer(*_counts(example.input_ids), reply=reply, fusion=fusion)
            for example, reply, fusion in zip(examples, replies, weights, strict=True)
        ]

    @torch.inference_mode()
    def score(self, asked: Sequence[Conversation]) -> list[tuple[Answer, bool]]:
        """The log-probability of the last answer of each conversation, without its end of turn.

        Args:
          asked: (turns, visuals) each, as `make_example` takes them.

        Returns:
          (counts and the one score, whether greedy generation would give this answer).
        """
        end = self._end()
        examples, tails = [], []
        for turns, visuals in asked:
            args = (visuals, self._tokenizer, self._model.config, self._context)
            example = make_example(turns, *args)
            start = len(prompt_example(turns, *args))
            answer = example.input_ids[start:][example.labels[start:] != IGNORED].tolist()
            if answer[len(answer) - len(end) :] != end:
                raise ValueError(f"the answer does not end in {self._template.end!r}")
            tails.append(answer[: len(answer) - len(end)])
            labels = np.full(start + len(tails[-1]), IGNORED, np.int64)
            labels[start:] = tails[-1]
            examples.append(Example(example.input_ids[: len(labels)], labels, example.visuals))
        batch = self._batch(examples)
        out = self._model(**batch)
        column_of = {int(place): k for k, place in enumerate(out.logit_positions)}
        width = batch["input_ids"].shape[1]
        found = []
        for row, (example, tail) in enumerate(zip(examples, tails, strict=True)):
            columns = [column_of[width - len(tail) + k - 1] for k in range(len(tail))]
            logs_Kv = out.logits[row, columns].float().log_softmax(-1)
            total = sum(logs_Kv[k, token].item() for k, token in enumerate(tail))
            greedy = logs_Kv.argmax(-1).tolist() == tail
            prompt_ids = example.input_ids[: len(example) - len(tail)]
            found.append((Answer(*_counts(prompt_ids), scores=(float(total),)), greedy))
        return found

    @torch.inference_mode()
    def loglik(self, asked: Sequence[Asked]) -> list[Answer]:
        """See `Answerer.loglik`.

        A letter is scored in its place in the conversation, as training had it. Tokens that all
        options share, such as the end of the turn, say nothing and are left out.
        """
        forks = [self._fork(item) for item in asked]
        rows = [row for fork in forks for row in fork.rows]
        batch = self._batch(rows)
        out = self._model(**batch)
        column_of = {int(place): k for k, place in enumerate(out.logit_positions)}
        width = batch["input_ids"].shape[1]
        weights = weights_by_name(
            self.config, out.fusion_weights, [len(row.visuals) for row in rows]
        )
        answers, first = [], 0
        for item, fork in zip(asked, forks, strict=True):
            scores = []
            for option, tail in enumerate(fork.tails):
                row = first + (option if len(fork.rows) > 1 else 0)
                # Rows end together: padding is on the left.
                start = width - len(fork.tails[option if len(fork.rows) > 1 else 0])
                columns = [column_of[start + place - 1] for place in range(len(tail))]
                logs_Kv = out.logits[row, columns].float().log_softmax(-1)
                scores.append(sum(logs_Kv[k, token].item() for k, token in enumerate(tail)))
            assert len(scores) == len(item.options), "a score per letter"
            counts, fusion = _counts(fork.prefix), weights[first]
            answers.append(Answer(*counts, scores=tuple(scores), fusion=fusion))
            first += len(fork.rows)
        return answers

    def _end(self) -> list[int]:
        return self._tokenizer.encode(self._template.end, add_special_tokens=False)

    def _fork(self, asked: Asked) -> _Fork:
        examples = [
            make_example(
                [*_turns(asked), {"from": "gpt", "value": letter}],
                [asked.visual],
                self._tokenizer,
                self._model.config,
                self._context,
            )
            for letter in asked.options
        ]
        ids = [example.input_ids for example in examples]
        start = _common(ids)
        end = _common([i[::-1] for i in ids])
        end = min(end, min(map(len, ids)) - start - 1)
        tails = [i[start : len(i) - end].tolist() for i in ids]
        if not all((e.labels[start : len(e) - end] != IGNORED).all() for e in examples):
            raise ValueError("the tokens of the options' letters reach beyond the answer")
        # Letters of one token each share their row: one forward pass tells all of them.
        shared = all(len(tail) == 1 for tail in tails)
        rows = []
        for tail in tails[:1] if shared else tails:
            labels = np.full(start + len(tail), IGNORED, np.int64)
            labels[start:] = tail
            rows.append(Example(np.append(ids[0][:start], tail), labels, examples[0].visuals))
        return _Fork(ids[0][:start], tails, rows)

    def _batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor | None]:
        batch = collate(examples, self._tokenizer.pad_token_id, left=True)
        device = self._model.device
        return {name: None if t is None else t.to(device) for name, t in batch.items()}


class _Fork(NamedTuple):
    """A prompt where it parts into its options.

    Attributes:
      prefix: ids that all options share.
      tails: ids of each option up to where they agree again.
      rows: to be run: one for all options, or one each.
    """

    prefix: np.ndarray
    tails: list[list[int]]
    rows: list[Example]


def fingerprint(folder: Path) -> str:
    """16 hex digits of a saved model: its JSON files, and sizes and both ends of its weight files.

    Reading all of the weights in every chunk of an array job would take minutes.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".safetensors", ".bin"):
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE if path.suffix != ".json" else size))
            if size > _EDGE and path.suffix != ".json":
                file.seek(-_EDGE, 2)
                digest.update(file.read(_EDGE))
    return digest.hexdigest()[:16]


def _turns(asked: Asked) -> list[dict[str, str]]:
    return [{"from": "human", "value": VIDEO + asked.prompt}]


def _counts(ids_S: np.ndarray) -> tuple[int, int]:
    """(visual tokens, text tokens)."""
    visual = int((ids_S == VISUAL_TOKEN).sum())
    return visual, len(ids_S) - visual


def _common(rows: Sequence[np.ndarray]) -> int:
    """Length of the common beginning."""
    size = min(map(len, rows))
    same = np.all([row[:size] == rows[0][:size] for row in rows], axis=0)
    return size if same.all() else int(same.argmin())
