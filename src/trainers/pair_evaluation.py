"""Zero-shot classification and retrieval of an image-text model on pairs.

N images, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..cluster.features import Features
from ..data.pairs import PairError, PairSource, iterate_pairs, open_pairs
from ..data.pairs.records import RecordPairs
from ..data.tokenizers import Tokenizer
from ..evaluators.embedding import text_embeddings
from ..evaluators.image_text_retrieval import image_text_retrieval
from ..evaluators.prompts import class_prompts, read_classes, read_templates
from ..evaluators.zeroshot import class_embeddings, class_numbers, zero_shot
from ..models import clip
from ..models.clip import ClipConfig
from . import mesh as meshes
from .contrastive_config import ContrastiveConfig, RetrievalConfig, ZeroShotConfig

_INPUTS = ("patches", "positions", "length")


class PairModel:
    """Embeds pairs' images and texts on a mesh.

    Args:
      config: the model, which has a text tower.
      tokenizer: of the texts.
      image_size: side in pixels at which images are seen.
      mesh: rows of a batch are spread over it.

    Attributes:
      params: the parameters; set before use, they may lie on the mesh in any way.
    """

    def __init__(
        self, config: ClipConfig, tokenizer: Tokenizer, image_size: int, mesh: Mesh
    ) -> None:
        self.params: Any = None
        self._config, self._tokenizer, self._mesh = config, tokenizer, mesh
        self._image_size = image_size
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._image = jax.jit(
            lambda p, b: clip.embed_image(config, p, b)[0], out_shardings=everywhere
        )
        self._text = jax.jit(
            lambda p, b: clip.embed_text(config, p, b["ids"])[0], out_shardings=everywhere
        )

    def images(self, source: PairSource, batch_size: int) -> Features:
        """Embeddings of all images of a source, in its order; zeros for one that can't be read."""
        rows, readable = [], []
        patch = self._config.vision.patch
        budget = (self._image_size // patch) ** 2
        if isinstance(source, RecordPairs) and not source.pictures:
            budget = source.record_set.manifest["tokens"]["max"]
        batches = iterate_pairs(
            source,
            self._tokenizer,
            batch_size=batch_size,
            budget=budget,
            patch=patch,
            image_size=self._image_size,
        )
        for batch in batches:
            real_B = batch["index"] >= 0  # the last batch is filled up
            found_BD = self._apply(self._image, {key: batch[key] for key in _INPUTS})
            readable.append(batch["weight"][real_B] > 0)
            rows.append(np.where(readable[-1][:, None], found_BD[real_B], np.float32(0)))
        return Features(np.concatenate(rows), np.concatenate(readable))

    def texts(self, texts: list[str]) -> np.ndarray:
        """Embeddings of one batch of texts."""
        length = self._config.text.context_length
        ids_BT = np.stack([self._tokenizer.encode(text, length) for text in texts])
        return self._apply(self._text, {"ids": ids_BT})

    def _apply(self, function: Any, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        found = function(self.params, meshes.put_whole_batch(batch, self._mesh))
        return np.asarray(found, np.float32)


class ZeroShot:
    """One zero-shot evaluation.

    Args:
      config: its pairs, classes and templates.

    Raises:
      ValueError: pairs or classes can't be read, or a pair names none or several of the classes.
    """

    def __init__(self, config: ZeroShotConfig) -> None:
        self._config = config
        self._source = open_pairs(config.pairs, preset=config.preset, columns=config.columns)
        self._classes = read_classes(config.classes, config.dataset or None)
        self._labels_N = self._read_labels()

    def __call__(self, model: PairModel) -> dict[str, float]:
        """top1, top5 and counts, as `evaluators.zeroshot.zero_shot`."""
        config = self._config
        prompts = class_prompts(
            self._classes,
            read_templates(config.templates),
            aliases=config.aliases,
            canonical=config.canonical,
        )
        classes_YD = class_embeddings(prompts, model.texts, self._config.batch_size)
        images = model.images(self._source, self._config.batch_size)
        return zero_shot(images.rows_ND, self._labels_N, classes_YD, readable_N=images.readable_N)

    def _read_labels(self) -> np.ndarray:
        """The class of each pair by its first text; -1 for one without a text, which is not asked.

        An unreadable pair counts as wrong whatever its class is, so it gets the first.
        """
        texts = read_texts(self._source)
        called = {place: found[0] for place, found in enumerate(texts) if found}
        try:
            numbers = class_numbers(list(called.values()), self._classes)
        except ValueError as error:
            raise ValueError(
                f"{self._source.name}: {error}; if it is not the class that this column says, name "
                "another with columns = text_0=COLUMN"
            ) from error
        labels_N = np.array([0 if found is None else -1 for found in texts], np.int32)
        labels_N[list(called)] = numbers
        return labels_N


class Retrieval:
    """One retrieval evaluation.

    Args:
      config: its pairs.

    Raises:
      ValueError: the pairs can't be read.
    """

    def __init__(self, config: RetrievalConfig) -> None:
        self._config = config
        self._source = open_pairs(config.pairs, preset=config.preset, columns=config.columns)
        # The captions of an unreadable pair are not known: one that says nothing stands for them,
        # which is not found either.
        texts = [[""] if found is None else found for found in read_texts(self._source)]
        self._captions = [text for found in texts for text in found]
        counts = [len(found) for found in texts]
        self._image_of_M = np.repeat(np.arange(len(texts), dtype=np.int32), counts)

    def __call__(self, model: PairModel) -> dict[str, float]:
        """Recalls both ways and counts, as `evaluators.image_text_retrieval`."""
        images = model.images(self._source, self._config.batch_size)
        return image_text_retrieval(
            images.rows_ND,
            text_embeddings(self._captions, model.texts, self._config.batch_size),
            self._image_of_M,
            readable_N=images.readable_N,
        )


class PairEvaluations:
    """The evaluations inside a run; all their data are opened when it starts.

    Args:
      config: the run.
      tokenizer: of the run.
      mesh: the run's mesh.

    Raises:
      ValueError: data don't fit, or the model has no text tower to evaluate with.
    """

    def __init__(self, config: ContrastiveConfig, tokenizer: Tokenizer, mesh: Mesh) -> None:
        self._total_steps = config.total_steps
        self._settings = {f"zero_shot/{name}": one for name, one in config.zero_shot.items()}
        self._settings |= {f"retrieval/{name}": one for name, one in config.retrieval.items()}
        if self._settings and config.model.text is None:
            raise ValueError(
                f"config evaluates {', '.join(self._settings)}, but config.model.text is None: "
                "captioning alone gives no common embedding of images and texts"
            )
        for name, one in self._settings.items():
            if one.batch_size % mesh.size:
                raise ValueError(
                    f"{name}: batch_size = {one.batch_size} must be a multiple of the "
                    f"{mesh.size} devices"
                )
        self._evaluations = {
            name: ZeroShot(one) if isinstance(one, ZeroShotConfig) else Retrieval(one)
            for name, one in self._settings.items()
        }
        self._model = None
        if self._settings:
            size = max(source.image_size for source in config.sources.values())
            self._model = PairModel(config.model, tokenizer, size, mesh)

    def due(self, step: int, params: Any) -> dict[str, float]:
        """The metrics of those that are due after this step; the last step evaluates all."""
        found = {}
        for name, evaluation in self._evaluations.items():
            if step % self._settings[name].every_steps == 0 or step == self._total_steps:
                self._model.params = params
                results = evaluation(self._model)
                found |= {f"{name}/{key}": float(value) for key, value in results.items()}
        return found


def read_texts(source: PairSource) -> list[list[str] | None]:
    """The texts of each pair: an empty list if it has none, None if it can't be read.

    Raises:
      ValueError: no pair has a text.
    """
    texts: list[list[str] | None] = []
    problem = "it holds no pairs"
    for index in range(len(source)):
        try:
            texts.append(list(source.read(index, media=False).texts.values()))
        except PairError as error:
            texts.append([] if error.kind == "no text" else None)
            problem = str(error)
    if not any(texts):
        raise ValueError(f"{source.name}: no pair has a text, the last one because: {problem}")
    return texts
