"""Images -> `pixel_values` of the OneVision encoder, with Pillow and numpy alone (no torchvision).

The steps and the configuration fields are those of CLIP's image processor: short side to `size` by
bicubic resampling, centre crop, rescaling, normalisation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageOps
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class OneVisionEncoderImageProcessor(BaseImageProcessor):
    """Prepares images, or the frames of a video one by one.

    Args:
      do_resize: resize to `size`.
      size: {"shortest_edge": n}, which keeps the aspect, or {"height": h, "width": w}.
      resample: a Pillow resampling filter; 3 is bicubic.
      do_center_crop: crop to `crop_size`; images smaller than it are refused.
      crop_size: {"height": h, "width": w}.
      do_rescale: multiply by `rescale_factor`.
      rescale_factor: factor on the 0..255 levels.
      do_normalize: subtract `image_mean` and divide by `image_std`.
      image_mean: per channel of RGB.
      image_std: per channel of RGB.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        do_resize: bool = True,
        size: dict[str, int] | None = None,
        resample: int = 3,
        do_center_crop: bool = True,
        crop_size: dict[str, int] | None = None,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.do_resize = do_resize
        self.size = {"shortest_edge": 448} if size is None else size
        self.resample = resample
        self.do_center_crop = do_center_crop
        self.crop_size = {"height": 448, "width": 448} if crop_size is None else crop_size
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = list(CLIP_MEAN) if image_mean is None else image_mean
        self.image_std = list(CLIP_STD) if image_std is None else image_std

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = None,
        *,
        do_resize: bool | None = None,
        size: dict[str, int] | None = None,
        resample: int | None = None,
        do_center_crop: bool | None = None,
        crop_size: dict[str, int] | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
    ) -> BatchFeature:
        """Prepares one image or a list of images.

        Args:
          images: a Pillow image, an array (numpy or torch) of 0..255 levels, [height, width],
            channels last or channels first, or a list or a stacked array of such.
          return_tensors: "pt" or "np" stacks the results; None keeps a list.
          do_resize, size, resample, do_center_crop, crop_size, do_rescale, rescale_factor,
          do_normalize, image_mean, image_std:
            override the processor's own settings for this call.

        Returns:
          `pixel_values`, float32 [N, 3, height, width].

        Raises:
          ValueError: an input is no image, or smaller than the crop.
        """

        def setting(value: Any, name: str) -> Any:
            return getattr(self, name) if value is None else value

        mean = np.asarray(setting(image_mean, "image_mean"), np.float32)
        std = np.asarray(setting(image_std, "image_std"), np.float32)
        pixel_values = []
        for image in _as_images(images):
            if setting(do_resize, "do_resize"):
                new_size = _target_size(image.size, setting(size, "size"))
                image = image.resize(new_size, setting(resample, "resample"))
            if setting(do_center_crop, "do_center_crop"):
                image = _center_crop(image, setting(crop_size, "crop_size"))
            pixels = np.asarray(image, np.float32)
            if setting(do_rescale, "do_rescale"):
                pixels = pixels * np.float32(setting(rescale_factor, "rescale_factor"))
            if setting(do_normalize, "do_normalize"):
                pixels = (pixels - mean) / std
            pixel_values.append(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)


def _as_images(images: Any) -> list[Image.Image]:
    """Any accepted input as a flat list of RGB images, upright as a camera's EXIF tag says."""
    if isinstance(images, Image.Image):
        image = ImageOps.exif_transpose(images)
        if image.mode.startswith("I;16"):
            # Pillow would cut 16-bit grey at 255, which is white nearly everywhere.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return [image.convert("RGB")]
    if isinstance(images, list | tuple):
        return [image for item in images for image in _as_images(item)]
    array = np.asarray(images)
    if array.ndim == 4:
        return [image for item in array for image in _as_images(item)]
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.dtype != np.uint8:
        raise ValueError(
            "an image must be a Pillow image or an array of uint8 levels with 2 or 3 axes, got "
            f"{type(images).__name__} of {array.dtype} {list(array.shape)}"
        )
    return [Image.fromarray(array).convert("RGB")]


def _target_size(size: tuple[int, int], wanted: dict[str, int]) -> tuple[int, int]:
    """(width, height) to resize to; with `shortest_edge` the aspect is kept, rounded to a pixel."""
    if "shortest_edge" not in wanted:
        return wanted["width"], wanted["height"]
    edge, short = wanted["shortest_edge"], min(size)
    return round(size[0] * edge / short), round(size[1] * edge / short)


def _center_crop(image: Image.Image, crop: dict[str, int]) -> Image.Image:
    height, width = crop["height"], crop["width"]
    if image.width < width or image.height < height:
        raise ValueError(
            f"an image of {image.width} x {image.height} pixels is smaller than crop_size "
            f"{width} x {height}: make size at least as large"
        )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
