"""Pairs -> batches: pictures and texts drawn anew each time, by (seed, place in the stream) alone.

Shape suffixes: L token budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from ...codec.image import centre_crop, image_sequence
from ...sequence import PatchSequence
from ..augment import AugmentConfig, flip_sequence, kept_patches
from ..cache import check_orders, orders_of
from ..examples import NO_AUGMENT, Batch, Pool
from ..pictures import see_picture
from ..pipeline import Loader, open_loader
from ..tokenizers import Tokenizer
from .records import RecordPairs
from .source import Pair, PairError, PairSource
from .text import Chosen, PairTextConfig, choose_texts, empty_rows, text_rows

_LACKED = "lacked"
NO_TEXT_OPTIONS = PairTextConfig()


class PairLoader(Loader):
    """A loader of pairs; made by `make_pair_loader`.

    Attributes:
      lacked: examples so far, in this process, in which the web caption stood in for a missing
        synthetic one, or the other way round.
    """

    lacked: int = 0

    def __next__(self) -> Batch:
        batch = super().__next__()
        self.lacked += int(batch.pop(_LACKED).sum())
        return batch

    def counts(self) -> dict[str, int]:
        """As `Loader.counts`, and `lacked`."""
        return {**super().counts(), "lacked": self.lacked}


@dataclasses.dataclass(frozen=True, eq=False)
class PairExamples:
    """The rows of one source of pairs; travels to worker processes.

    Attributes:
      source: where the pairs come from.
      tokenizer, text: how their texts become ids.
      budget: L.
      patch: side of a patch in pixels.
      image_size: side in pixels of the view of pictures.
      augment: what is drawn anew of each picture.
      mask_ratio: share of the patches that is left out, drawn anew.
    """

    source: PairSource
    tokenizer: Tokenizer
    text: PairTextConfig
    budget: int
    patch: int
    image_size: int
    augment: AugmentConfig
    mask_ratio: float

    def __len__(self) -> int:
        return len(self.source)

    def draw(self, index: int, rng: np.random.Generator) -> Batch:
        """Pair `index`, its picture augmented and its sentence drawn."""
        return self.at(index, rng)

    def at(self, index: int, rng: np.random.Generator | None = None) -> Batch:
        """Pair `index`; of weight 0 if it cannot be used. Without a generator nothing is drawn."""
        # Generators of their own: another augmentation leaves sentences and masks as they were.
        # (Not `rng.spawn`: the loader's generators are rewound, and do not count their children.)
        seeds = [None] * 3 if rng is None else rng.integers(2**63, size=3)
        view, words, mask = (None if s is None else np.random.default_rng(s) for s in seeds)
        row = self.empty(index)
        try:
            pair = self.source.read(index)
            chosen = self._choose(pair, words)
            sequence = self._sequence(pair, view)
        except PairError:
            return row
        positions, patches = sequence.positions, sequence.flat()
        if mask is not None and self.mask_ratio:
            kept = np.sort(mask.permutation(len(sequence))[: self._kept(len(sequence))])
            positions, patches = positions[kept], patches[kept]
        length = len(positions)
        row["patches"][:length] = patches
        row["positions"][:length] = positions
        row["length"] = np.int32(length)
        row["weight"] = np.float32(1)
        row[_LACKED] = np.bool_(chosen.lacked)
        return {**row, **text_rows(chosen, self.tokenizer, self.text)}

    def empty(self, index: int) -> Batch:
        """A row that counts for nothing; of length 1, as attention over no token gives NaN."""
        return {
            "patches": np.zeros((self.budget, self.patch**2 * 3), np.uint8),
            "positions": np.zeros((self.budget, 3), np.int32),
            "length": np.int32(1),
            "weight": np.float32(0),
            "index": np.int64(index),
            _LACKED: np.bool_(False),
            **empty_rows(self.tokenizer, self.text),
        }

    def check(self, index: int) -> None:
        """Raises PairError if pair `index` cannot be used."""
        pair = self.source.read(index)
        self._choose(pair, None)
        self._sequence(pair, None)

    def _choose(self, pair: Pair, rng: np.random.Generator | None) -> Chosen:
        chosen = choose_texts(pair.texts, self.text, rng)
        if chosen is None:
            raise PairError(
                pair.key,
                "no text",
                f"none of its texts ({', '.join(pair.texts)}) is {self.text.web} or "
                f"{self.text.synthetic}",
            )
        return chosen

    def _sequence(self, pair: Pair, rng: np.random.Generator | None) -> PatchSequence:
        if pair.record is None:
            image = pair.picture()
            if rng is None:
                rgb_SS3 = centre_crop(image, self.image_size)
            else:
                rgb_SS3 = see_picture(image, self.image_size, self.augment, rng)
            sequence, width = image_sequence(rgb_SS3, self.patch), self.image_size
        else:
            sequence, width = pair.record.sequence, pair.record.view[1]
            if sequence.patch != self.patch or self._kept(len(sequence)) > self.budget:
                raise PairError(
                    pair.key,
                    "undecodable",
                    f"has {len(sequence)} patches of side {sequence.patch}, expected at most "
                    f"{self.budget} of side {self.patch}",
                )
        if rng is not None and self.augment.flip and rng.uniform() < self.augment.flip:
            return flip_sequence(sequence, width // self.patch)
        return sequence

    def _kept(self, length: int) -> int:
        return kept_patches(length, self.mask_ratio)


def make_pair_loader(
    sources: PairSource | Sequence[PairSource],
    tokenizer: Tokenizer,
    text: PairTextConfig = NO_TEXT_OPTIONS,
    *,
    weights: Sequence[float] | None = None,
    batch_size: int,
    budget: int,
    patch: int = 0,
    image_size: int = 0,
    augment: AugmentConfig = NO_AUGMENT,
    mask_ratio: float = 0.0,
    seed: int = 0,
    shuffle: bool = True,
    shuffle_window: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    worker_count: int = 0,
    start_index: int = 0,
) -> PairLoader:
    """An endless, resumable loader over one source of pairs, or over several that are mixed.

    A batch holds `patches` uint8 [B, L, P * P * 3], `positions` int32 [B, L, 3], `length` int32,
    `weight` float32, `index` int64, `text_0` and `text_1` int32 [B, T], `target` int32 [B, O] and
    `target_mask` bool [B, O]. A pair that cannot be used is a row of weight 0, and logged.

    Args:
      sources: as `open_pairs` gives them.
      tokenizer: of all texts.
      text: which texts are what.
      budget: L.
      patch: side of a patch in pixels; 0 takes that of the record sets.
      image_size: side in pixels of the view of pictures; 0 takes the size that a record set was
        packed for.
      augment: what is drawn anew of each picture; records of patches can only be mirrored.
      mask_ratio: share of an example's patches that is left out, drawn anew, 0 .. 1 (1 excluded).
      weights, batch_size, seed, shuffle, shuffle_window, process_index, process_count,
        worker_count, start_index: as for `make_loader`.

    Returns:
      The loader; close it.

    Raises:
      ValueError: an option is out of range, missing, or does not fit the sources.
    """
    sources = [sources] if isinstance(sources, PairSource) else list(sources)
    if not sources:
        raise ValueError("sources is empty: name at least one source of pairs")
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio = {mask_ratio} must lie in 0..1, 1 excluded")
    sets = [source.record_set for source in sources if isinstance(source, RecordPairs)]
    orders = orders_of(sets, shuffle_window, shuffle)
    check_orders(orders)
    patch = patch or next((found.manifest["patch"] for found in sets), 0)
    parts = []
    for source in sources:
        size = _image_size(source, image_size, patch, budget, augment, mask_ratio)
        parts.append(
            PairExamples(source, tokenizer, text, budget, patch, size, augment, mask_ratio)
        )
    opened = open_loader(
        Pool(parts),
        loader=PairLoader,
        weights=weights,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        shuffle_window=shuffle_window,
        process_index=process_index,
        process_count=process_count,
        worker_count=worker_count,
        start_index=start_index,
    )
    opened.orders = orders
    return opened


def iterate_pairs(
    source: PairSource,
    tokenizer: Tokenizer,
    text: PairTextConfig = NO_TEXT_OPTIONS,
    *,
    batch_size: int,
    budget: int,
    patch: int = 0,
    image_size: int = 0,
) -> Iterator[Batch]:
    """Every pair once, in order, nothing drawn: the first sentence, the centre of the picture.

    Args:
      source, tokenizer, text, budget, patch, image_size: as for `make_pair_loader`.
      batch_size: rows of every batch; the last one is filled up with rows of weight 0 and index -1.

    Yields:
      Batches as a loader's. An unusable pair has weight 0 and its index.

    Raises:
      ValueError: as `make_pair_loader`.
    """
    if isinstance(source, RecordPairs):
        patch = patch or source.record_set.manifest["patch"]
    size = _image_size(source, image_size, patch, budget, NO_AUGMENT, 0.0)
    examples = PairExamples(source, tokenizer, text, budget, patch, size, NO_AUGMENT, 0.0)
    for start in range(0, len(source), batch_size):
        rows = [examples.at(i) for i in range(start, min(start + batch_size, len(source)))]
        rows += [examples.empty(-1)] * (batch_size - len(rows))
        yield {key: np.stack([row[key] for row in rows]) for key in rows[0] if key != _LACKED}


def _image_size(
    source: PairSource,
    image_size: int,
    patch: int,
    budget: int,
    augment: AugmentConfig,
    mask_ratio: float,
) -> int:
    """The side of the view of a source's pictures; 0 of patches. Checks all that can be checked."""
    if len(source) == 0:
        raise ValueError(f"{source.name} is empty")
    if patch < 1:
        raise ValueError(f"{source.name} holds whole pictures: give patch, a side in pixels")
    manifest = source.record_set.manifest if isinstance(source, RecordPairs) else {}
    if manifest and not source.pictures:
        size = 0
        if manifest["patch"] != patch:
            raise ValueError(
                f"{source.name} holds patches of {manifest['patch']} pixels, not patch = {patch}"
            )
        if augment.for_pictures:
            raise ValueError(
                f"{source.name} holds patches, which can be flipped, but neither cropped nor "
                f"recoloured (augment = {augment})"
            )
        longest = manifest["tokens"]["max"]
    else:
        size = image_size or manifest.get("size", 0)
        if size < patch or size % patch:
            raise ValueError(
                f"image_size = {size} of {source.name} must be a multiple of the patch {patch}"
            )
        longest = (size // patch) ** 2
    if kept_patches(longest, mask_ratio) > budget:
        raise ValueError(
            f"budget = {budget} is below the longest sequence of {source.name} "
            f"({kept_patches(longest, mask_ratio)} patches): raise the budget or mask_ratio"
        )
    return size
