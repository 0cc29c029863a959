"""An encoder ready to use: patch sequences in, numpy out.

Shape suffixes: B batch, L tokens, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import jax
import numpy as np

from ..sequence import PatchSequence
from .config import ViTConfig
from .vit import ViT

_LENGTH_STEP = 64
_MAX_ROWS = 16


class EncoderOutput(NamedTuple):
    """What the encoder says about one sequence.

    Attributes:
      tokens: float32 [L, D], one per patch, in the order of the sequence.
      pooled: float32 [D], one for the whole sequence.
    """

    tokens: np.ndarray
    pooled: np.ndarray


class Encoder:
    """A ViT with its parameters.

    Attributes:
      config: the architecture.
      params: the parameter tree (docs/architecture.md).
    """

    def __init__(self, config: ViTConfig, params: Mapping[str, Any]) -> None:
        self.config = config
        self.params = params
        self._apply = jax.jit(functools.partial(_apply, ViT(config)))
        self._placed: dict[jax.Device, Any] = {}

    @overload
    def __call__(self, sequences: PatchSequence) -> EncoderOutput: ...

    @overload
    def __call__(self, sequences: Sequence[PatchSequence]) -> list[EncoderOutput]: ...

    def __call__(
        self, sequences: PatchSequence | Sequence[PatchSequence]
    ) -> EncoderOutput | list[EncoderOutput]:
        """Encodes one sequence, or many.

        Sequences are padded to a multiple of 64 tokens and run in batches of 1, 2, 4, 8 or 16 rows
        of one padded length, so that few shapes are compiled; padding does not change the numbers.

        Args:
          sequences: one patch sequence, or several of any lengths.

        Returns:
          One output, or a list in the order of the input.

        Raises:
          ValueError: the patch size is not the model's.
        """
        if isinstance(sequences, PatchSequence):
            return self([sequences])[0]
        outputs: dict[int, EncoderOutput] = {}
        for rows, batch in self._batches(sequences):
            out = jax.device_get(self._apply(self.params, *batch))
            for row, i in enumerate(rows):
                tokens_LD = out["tokens"][row, : len(sequences[i])]
                outputs[i] = EncoderOutput(
                    tokens_LD.astype(np.float32), out["pooled"][row].astype(np.float32)
                )
        return [outputs[i] for i in range(len(sequences))]

    def pooled(
        self, sequences: Sequence[PatchSequence], devices: Sequence[jax.Device] | None = None
    ) -> np.ndarray:
        """Pooled embeddings alone, batch after batch spread over several devices.

        Args:
          sequences: of any lengths.
          devices: each gets the parameters and every n-th batch; the default device when None.

        Returns:
          float32 [len(sequences), D].

        Raises:
          ValueError: the patch size is not the model's.
        """
        devices = list(devices or jax.local_devices()[:1])
        for device in devices:
            if device not in self._placed:
                self._placed[device] = jax.device_put(self.params, device)
        pooled_ND = np.zeros((len(sequences), self.config.width), np.float32)
        waiting = []
        for number, (rows, batch) in enumerate(self._batches(sequences)):
            device = devices[number % len(devices)]
            # Not waited for yet: the next device starts meanwhile.
            out = self._apply(self._placed[device], *jax.device_put(batch, device))
            waiting.append((rows, out["pooled"]))
            if len(waiting) > len(devices):
                done, out_BD = waiting.pop(0)
                pooled_ND[done] = np.asarray(out_BD)[: len(done)]
        for done, out_BD in waiting:
            pooled_ND[done] = np.asarray(out_BD)[: len(done)]
        return pooled_ND

    def embed(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Pooled embeddings of a loader batch.

        Args:
          batch: `patches` uint8 [B, L, patch*patch*3], `positions` int32 [B, L, 3], `length` int32
            [B]; other keys are left alone.

        Returns:
          float32 [B, D].

        Raises:
          ValueError: the patch size is not the model's.
        """
        values = batch["patches"].shape[-1]
        side = round((values / 3) ** 0.5)
        self._require_patch(side if side * side * 3 == values else values, "batch['patches']")
        out = self._apply(self.params, batch["patches"], batch["positions"], batch["length"])
        return np.asarray(out["pooled"]).astype(np.float32)

    def _batches(
        self, sequences: Sequence[PatchSequence]
    ) -> Iterator[tuple[list[int], tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """Numbers of sequences of like length, and their padded batch."""
        buckets: dict[int, list[int]] = {}
        for i, sequence in enumerate(sequences):
            self._require_patch(sequence.patch, f"sequence {i}")
            buckets.setdefault(-(-len(sequence) // _LENGTH_STEP) * _LENGTH_STEP, []).append(i)
        for padded, members in buckets.items():
            for start in range(0, len(members), _MAX_ROWS):
                rows = members[start : start + _MAX_ROWS]
                yield rows, _pad([sequences[i] for i in rows], padded)

    def _require_patch(self, patch: int, what: str) -> None:
        if patch != self.config.patch:
            raise ValueError(
                f"{what} has patches of {patch} x {patch} pixels, but the encoder takes patch = "
                f"{self.config.patch}; pack with patch={self.config.patch}"
            )


def _apply(vit: ViT, params: Any, *batch: Any) -> dict[str, jax.Array]:
    return vit.apply({"params": params}, *batch)


def _pad(
    sequences: Sequence[PatchSequence], padded: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A batch of `padded` tokens and a power of two of rows; surplus rows are empty."""
    rows = 1 << (len(sequences) - 1).bit_length()
    patches = np.zeros((rows, padded, sequences[0].patch ** 2 * 3), np.uint8)
    positions = np.zeros((rows, padded, 3), np.int32)
    length = np.zeros(rows, np.int32)
    for row, sequence in enumerate(sequences):
        patches[row, : len(sequence)] = sequence.flat()
        positions[row, : len(sequence)] = sequence.positions
        length[row] = len(sequence)
    return patches, positions, length
