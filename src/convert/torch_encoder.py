"""Any image encoder of transformers as a frozen encoder of frames, for rows beside ours in a probe.

Frames are put together again of a record's patches, normalised as the model's image processor says,
and encoded one by one. All tokens of all frames are one sequence; a sin/cos code of the frame's
number is added to each, since the model knows no time (as in the published attentive probe of
OneVision-Encoder). Imports torch, and no jax.

Shape suffixes: B rows, L patches of a row, K values of a patch, T frames, N tokens of a frame, D
width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

_FRAMES_AT_ONCE = 64


class TorchEncoder:
    """An image encoder, applied to each frame.

    Args:
      name: folder of the model or its name on the Hugging Face hub. A model with a text tower gives
        its vision tower; code that comes with a model is not run.
      frames: T, most frames of a row.
      dtype: "float32", "bfloat16", or "auto": float32 on a CPU, bfloat16 on a GPU.

    Attributes:
      width: D.
      tokens: T*N.

    Raises:
      ValueError: there is no such model, it does not take pictures alone, or its image processor
        does not say how they are normalised.
    """

    def __init__(self, name: str, frames: int, dtype: str = "auto") -> None:
        self._frames = frames
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if dtype == "auto":
            dtype = "float32" if self._device.type == "cpu" else "bfloat16"
        self._dtype = getattr(torch, dtype)
        try:
            settings, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
            model = transformers.AutoModel.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ValueError(f"hf:{name} cannot be opened: {error}") from error
        self._mean, self._std = (
            torch.tensor(numbers, device=self._device)[:, None, None]
            for numbers in _normalisation(name, settings)
        )
        self._size = _picture_size(name, settings)
        model = getattr(model, "vision_model", model)
        self._model = model.eval().to(self._device, self._dtype)
        try:
            tokens_1ND = self._encode(np.zeros((1, *self._size, 3), np.uint8))
        except (TypeError, ValueError) as error:
            raise ValueError(f"hf:{name} does not take pictures alone: {error}") from error
        self._per_frame, self.width = tokens_1ND.shape[1:]
        self.tokens = frames * self._per_frame

    def __call__(
        self, patches_BLK: np.ndarray, positions_BL3: np.ndarray, length_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all frames of each row.

        Args:
          patches_BLK: uint8, flat (row, column, channel), of whole frames.
          positions_BL3: int32 (t, h, w).
          length_B: int32, valid prefixes; 0 for a row that could not be read.

        Returns:
          float32 [B, T*N, D] and int32 [B], the valid prefix of each row: frames times N, and 1
          token of zeros for a row without frames.

        Raises:
          ValueError: a row does not hold whole frames.
        """
        rows = [
            frames_of(patches[:length], positions[:length])
            for patches, positions, length in zip(patches_BLK, positions_BL3, length_B, strict=True)
            if length
        ]
        counts_B = np.zeros(len(length_B), int)
        counts_B[length_B > 0] = [len(row) for row in rows]
        tokens_BTND = np.zeros(
            (len(counts_B), self._frames, self._per_frame, self.width), np.float32
        )
        if rows:
            pictures = np.concatenate(rows)
            encoded = np.concatenate(
                [
                    self._encode(pictures[start : start + _FRAMES_AT_ONCE])
                    for start in range(0, len(pictures), _FRAMES_AT_ONCE)
                ]
            )
            present_BT = np.arange(self._frames) < counts_B[:, None]
            tokens_BTND[present_BT] = encoded
            code_TD = temporal_code(self._frames, self.width)
            tokens_BTND += np.where(present_BT[..., None, None], code_TD[:, None], 0)
        tokens = tokens_BTND.reshape(len(counts_B), -1, self.width)
        return tokens, np.maximum(counts_B * self._per_frame, 1).astype(np.int32)

    @torch.inference_mode()
    def _encode(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, 3] -> float32 [n, N, D], every token that the model gives."""
        pixels = torch.from_numpy(pictures).to(self._device, torch.float32).permute(0, 3, 1, 2)
        if pixels.shape[2:] != self._size:
            resized = torch.nn.functional.interpolate(
                pixels, self._size, mode="bicubic", antialias=True
            )
            pixels = resized.clamp(0, 255)
        normalised = (pixels / 255 - self._mean) / self._std
        out = self._model(pixel_values=normalised.to(self._dtype))
        return out.last_hidden_state.float().cpu().numpy()


def frames_of(patches_LK: np.ndarray, positions_L3: np.ndarray) -> np.ndarray:
    """The frames of a sequence that holds all of their patches, in order of time.

    Args:
      patches_LK: uint8, flat (row, column, channel).
      positions_L3: (t, h, w), sorted and free of duplicates, as in every patch sequence.

    Returns:
      uint8 [T, H, W, 3].

    Raises:
      ValueError: patches are missing.
    """
    T = len(np.unique(positions_L3[:, 0]))
    rows, columns = positions_L3[:, 1:].max(axis=0) + 1
    if len(patches_LK) != T * rows * columns:
        raise ValueError(
            f"{len(patches_LK)} patches are not {T} whole frames of {rows} x {columns}: encoders "
            "of pictures need the input framesN"
        )
    P = round((patches_LK.shape[1] / 3) ** 0.5)
    frames = patches_LK.reshape(T, rows, columns, P, P, 3).swapaxes(2, 3)
    return frames.reshape(T, rows * P, columns * P, 3)


def temporal_code(frames: int, width: int) -> np.ndarray:
    """The sin/cos code of frame numbers (Vaswani et al. 2017, section 3.5), float32 [T, D]: all
    sines, then all cosines."""
    rates = 10000.0 ** (-np.arange(0, width, 2) / width)
    angles = np.arange(frames)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width].astype(np.float32)


def _normalisation(name: str, settings: dict[str, Any]) -> tuple[list[float], list[float]]:
    if settings.get("do_normalize") is False:
        return [0.0] * 3, [1.0] * 3
    found = settings.get("image_mean"), settings.get("image_std")
    if not all(isinstance(value, list) and len(value) == 3 for value in found):
        raise ValueError(
            f"hf:{name}: its image processor has image_mean = {found[0]} and image_std = {found[1]}"
            ", expected three numbers each"
        )
    return found


def _picture_size(name: str, settings: dict[str, Any]) -> tuple[int, int]:
    """(height, width) of what the processor hands to the model."""
    cropped = settings.get("do_center_crop") and "crop_size" in settings
    size = settings.get("crop_size" if cropped else "size")
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    else:
        size = (size, size)
    if not all(isinstance(side, int) for side in size):
        raise ValueError(f"hf:{name}: its image processor states no fixed size of pictures: {size}")
    return size
