"""The batches of a run: endless, in an order that the seed decides, from any step on."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from ...codec.llava.options import MosaicOptions, add_mosaic_arguments, mosaic_options
from ...codec.llava.recipe import Entry
from ...codec.llava.rows import folder_of
from ..data.dataset import Batch, Collator, LlavaDataset, make_loader
from ..data.mixture import Mixture, load_mixture
from ..data.row_visuals import KINDS
from ..data.sampler import LengthGroupedBatches
from ..templates import TEMPLATES
from .config import DataOptions, LlavaTrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..model.config import LlavaConfig


_LEAST_TEXT = 8  # tokens of the shortest turn and its answer, about


class TrainingData:
    """The micro-batches of one process.

    Args:
      config: of the run.
      tokenizer: of the language model.
      model_config: of the model.
      processes, process: how many share the work, and which of them this is.
      pin_memory: for copies to a GPU.

    Attributes:
      digest: of the lengths and kinds of all examples: equal for equal data in equal order.
      assets_hash: of the options that all mosaics were made with; None without mosaics.
      accumulation: micro-batches of a process in a step.
      steps_per_epoch: steps in which every example comes once.
      visual_tokens: about how many each example has, most first.

    Raises:
      ValueError, OSError: the recipe or its files are unusable, sizes don't divide each other, or
        visual tokens alone are more than fits.
    """

    def __init__(
        self,
        config: LlavaTrainConfig,
        tokenizer: PreTrainedTokenizerBase,
        model_config: LlavaConfig,
        processes: int = 1,
        process: int = 0,
        pin_memory: bool = False,
    ) -> None:
        options = config.data
        TEMPLATES[model_config.template].check_tokenizer(tokenizer)
        dataset = LlavaDataset(
            _mixture(options, config.seed),
            tokenizer,
            model_config,
            _room(options.max_length, model_config),
            assets=parse_mosaics(options.mosaics),
        )
        check_room(dataset, config.max_failures)
        self._batches = LengthGroupedBatches(
            dataset.lengths,
            dataset.kinds,
            config.batch_size,
            config.micro_batch_size,
            processes,
            process,
            config.seed,
        )
        collator = Collator(tokenizer.pad_token_id)
        self._loader = make_loader(dataset, self._batches, collator, options.workers, pin_memory)
        self._loader.worker_init_fn = _outlive_sigterm
        self.assets_hash = dataset.reading.asset_hash
        self.visual_tokens = np.sort(dataset.visual_tokens)[::-1]
        self.accumulation = self._batches.accumulation
        self.steps_per_epoch = self._batches.steps_per_epoch
        order = np.stack([dataset.lengths, dataset.kinds]).astype(np.int64)
        self.digest = hashlib.sha256(order.tobytes()).hexdigest()[:16]

    def describe(self) -> str:
        """How many visual tokens rows have, in words."""
        counts = self.visual_tokens
        return (
            f"{len(counts)} rows; visual tokens of a row: {counts.mean():.0f} on average, "
            f"{counts[0]} at most"
        )

    def steps(self, start: int) -> Iterator[list[Batch]]:
        """The micro-batches of step `start` and of all that follow it, epoch after epoch."""
        self._batches.cursor = start
        while True:
            step = []
            for batch in self._loader:
                step.append(batch)
                if len(step) == self.accumulation:
                    self._batches.cursor += 1
                    yield step
                    step = []


def parse_mosaics(text: str) -> MosaicOptions | None:
    """`config.data.mosaics` as options; None for "".

    Raises:
      ValueError: an option is unknown or out of range.
    """
    if not text:
        return None
    parser = _Parser(prog="config.data.mosaics", add_help=False)
    add_mosaic_arguments(parser)
    try:
        return mosaic_options(parser.parse_args(shlex.split(text)))
    except ValueError as error:
        raise ValueError(f"config.data.mosaics = {text!r}: {error}") from error


def check_room(dataset: LlavaDataset, max_failures: float) -> None:
    """Refuses a run most of whose failures are known beforehand.

    Raises:
      ValueError: of more than `max_failures` of the rows the visual tokens alone leave no room for
        a question and an answer.
    """
    counts, room = dataset.visual_tokens, dataset.max_length
    shapes = dataset.mixture.shapes
    # An image that doesn't state its size may turn out smaller than it was taken for.
    stated = (shapes.kind == KINDS.index("video")) | (shapes.height > 0)
    certain = stated | (dataset.reading.images.size > 0)
    if (share := float(np.mean(certain & (counts >= room - _LEAST_TEXT)))) > max_failures:
        raise ValueError(
            f"{share:.0%} of the rows overflow: they have up to {counts.max()} visual tokens, and "
            f"a row has room for {room} (config.data.max_length, the language model's context): "
            "pool more (config.model.pool_level, config.model.pool), show fewer patches, or raise "
            "config.data.max_length"
        )


def _room(max_length: int, config: LlavaConfig) -> int:
    """Most tokens of a row: what the run allows, and what the language model can read."""
    context = getattr(config.text_config, "max_position_embeddings", None)
    return min(max_length, context or max_length)


def _mixture(options: DataOptions, seed: int) -> Mixture:
    path = options.recipe
    if path.endswith((".json", ".jsonl")):
        beside = options.root or None  # mosaics are always relative to the file
        entry = Entry(path.rpartition("/")[2], image_folder=beside, video_folder=beside)
        return Mixture([entry], folder_of(path), seed)
    return load_mixture(path, options.root or None, seed)


def _outlive_sigterm(worker: int) -> None:
    """A signal to the whole process group must leave the readers to the step that is under way."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)
