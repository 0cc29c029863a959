"""What the model asks of an encoder, and the helpers to say it.

An encoder reads either "patches", our exports, or "frames", everything else. Hidden state 0 is what
the first block gets, hidden state k what block k + 1 gets, -1 what the last block gives; `NORM` is
the latter behind the model's own last normalisation.

Shape suffixes: V visuals, n frames of each, S side of a frame in pixels, 3 RGB, B clips that are
encoded together, c frames of a clip, T time steps, N = rows * columns tokens of a step, D width, L
patches of all visuals, K = P*P*3 values of a patch.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ...convert.hf.image_processing_onevision_encoder import CLIP_MEAN, CLIP_STD

NORM = "norm"
"""As a layer: the last hidden state, normalised as the encoder's own head reads it."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

Layer = int | str
ClipFeatures = Callable[[nn.Module, torch.Tensor, Layer], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """One kind of encoder.

    Attributes:
      classes: (configuration class, model class) of every `model_type` that this kind covers; empty
        for whatever transformers' AutoModel knows.
      features: "frames": (tower, frames [V, n, S, S, 3] floating and normalised, layer, chunk =
        None) -> [V, steps(n), rows * columns, D]; see `chunked`. "patches": (tower, pixels [L, K],
        positions [L, 3], lengths [V], layer) -> [L, D].
      used: (tower, layer) -> modules whose parameters the features depend on, all of them and no
        other.
      grid: (config, image_size) -> (rows, columns) of tokens of a frame.
      depth: config -> blocks; hidden states are 0..depth.
      chunk_of: config -> frames that are encoded together; 1 is a frame by itself.
      input: "frames" or "patches".
      native_frames: frames of a video that the published weights were trained with.
      chunk: frames that the published weights encode together.
      tubelet: frames that one time step is made of.
      select_layer: hidden state that is read unless a model says otherwise.
      image_mean, image_std: of the pixels that the encoder expects, per channel of RGB in 0..1.
      image_size: side of a frame in pixels, where neither configuration nor model says.
      resize: "squash" or "crop" (short side, then the centre), as the published weights were fed.
      has_norm: whether there is a last normalisation, so that `NORM` can be read.
      ignored: name prefixes of tensors in published files that belong to no part of the encoder.
      published_tensors: path of a published file that is no folder -> its tensors by the names of
        the model, whose configuration is then the default one; None where there is no such file.
    """

    classes: tuple[tuple[type[PretrainedConfig], type[PreTrainedModel]], ...]
    features: Callable[..., torch.Tensor]
    used: Callable[[nn.Module, Layer], Iterator[nn.Module]]
    grid: Callable[[PretrainedConfig, int | None], tuple[int, int]]
    depth: Callable[[PretrainedConfig], int] = lambda config: config.num_hidden_layers
    chunk_of: Callable[[PretrainedConfig], int] = lambda config: 1
    input: str = "frames"
    native_frames: int = 1
    chunk: int = 1
    tubelet: int = 1
    select_layer: Layer = -2
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    image_size: int = 224
    resize: str = "squash"
    has_norm: bool = True
    ignored: tuple[str, ...] = ()
    published_tensors: Callable[[str | Path], dict[str, torch.Tensor]] | None = None

    @property
    def config_class(self) -> type[PretrainedConfig]:
        """Of the first type that this kind covers; AutoConfig where it covers all."""
        return self.classes[0][0] if self.classes else AutoConfig

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """Of the first type that this kind covers; AutoModel where it covers all."""
        return self.classes[0][1] if self.classes else AutoModel

    def steps(self, frames: int) -> int:
        """Time steps that `frames` frames become; the last one may be filled up."""
        return -(-frames // self.tubelet)

    def size(self, config: PretrainedConfig) -> int:
        """Side in pixels of the frames that this encoder takes unless a model says otherwise."""
        stated = getattr(config, "image_size", None)
        if isinstance(stated, list | tuple):
            stated = stated[0]
        return stated or self.image_size

    def check_layer(self, config: PretrainedConfig, layer: Layer) -> None:
        """Raises ValueError unless `layer` is one that this encoder has."""
        if layer == NORM and self.has_norm:
            return
        states = self.depth(config) + 1
        if not isinstance(layer, int) or not -states <= layer < states:
            norm = f"be {NORM!r} or " if self.has_norm else ""
            raise ValueError(
                f"select_layer = {layer!r} must {norm}index one of the {states} hidden states of "
                "the encoder"
            )


def blocks_before(layer: Layer, depth: int) -> int:
    """How many blocks hidden state `layer` has behind it."""
    if layer == NORM:
        return depth
    return layer if layer >= 0 else depth + 1 + layer


def run_blocks(x: torch.Tensor, blocks: nn.ModuleList | list[nn.Module]) -> torch.Tensor:
    """The blocks of a transformers model, one after the other, without masks."""
    for block in blocks:
        x = block(x, **_nothing(type(block)))
        if isinstance(x, tuple):
            x = x[0]
    return x


def _nothing(block: type[nn.Module]) -> dict[str, None]:
    """None for each argument besides the first that a block insists on; versions differ."""
    parameters = list(inspect.signature(block.forward).parameters.values())[2:]
    wanted = (p for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD)
    return {p.name: None for p in wanted if p.default is inspect.Parameter.empty}


def square_grid(config: PretrainedConfig, image_size: int | None = None) -> tuple[int, int]:
    """The grid of a square image cut into patches of `config.patch_size`.

    Raises:
      ValueError: the size holds no whole patch.
    """
    return grid_of(image_size or config.image_size, config.patch_size)


def fixed_grid(config: PretrainedConfig, image_size: int | None = None) -> tuple[int, int]:
    """As `square_grid`, of an encoder whose position embeddings fit one size of frames alone.

    Raises:
      ValueError: `image_size` is another.
    """
    if image_size not in (None, config.image_size):
        raise ValueError(
            f"image_size = {image_size} must be {config.image_size}: this encoder's position "
            "embeddings fit no other"
        )
    return square_grid(config)


def grid_of(size: int | tuple[int, int], patch: int | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches in an image; what is left over is not read."""
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    patches = (patch, patch) if isinstance(patch, int) else tuple(patch)
    rows, columns = (s // p for s, p in zip(sizes, patches, strict=True))
    if min(rows, columns) < 1:
        raise ValueError(f"image_size = {size} holds no whole patch of {patch} pixels")
    return rows, columns


def chunked(
    clip_features: ClipFeatures,
    chunk_of: Callable[[PretrainedConfig], int] = lambda config: 1,
    tubelet: int = 1,
    lone_frames: bool = False,
) -> Callable[..., torch.Tensor]:
    """Features of any number of frames from features of a clip.

    Frames are cut into contiguous chunks that know nothing of each other. Where the last one is not
    full, its last frame is repeated, which looks like standing still and not like a cut to black,
    and the time steps made of nothing else are left out of what is returned. So an image, which is
    one frame, is a clip that stands still.

    Args:
      clip_features: (tower, frames [B, c, S, S, 3], layer) -> [B, c / tubelet, N, D].
      chunk_of: config -> c, unless the call says otherwise.
      tubelet: frames of a time step.
      lone_frames: one frame is not repeated: the encoder has a way of its own to see an image.

    Returns:
      (tower, frames [V, n, S, S, 3], layer, chunk = None) -> [V, ceil(n / tubelet), N, D].
    """

    def features(
        tower: nn.Module, frames_VnSS3: torch.Tensor, layer: Layer, chunk: int | None = None
    ) -> torch.Tensor:
        chunk = chunk_of(tower.config) if chunk is None else chunk
        if chunk < 1 or chunk % tubelet:
            raise ValueError(f"chunk = {chunk} must be a positive multiple of tubelet = {tubelet}")
        if frames_VnSS3.ndim != 5 or frames_VnSS3.shape[1] < 1:
            raise ValueError(f"frames must be [V, n, S, S, 3], got {list(frames_VnSS3.shape)}")
        visuals, frames = frames_VnSS3.shape[:2]
        if lone_frames and frames == 1:
            chunk = 1
        chunks = -(-frames // chunk)
        if gap := chunks * chunk - frames:
            last = frames_VnSS3[:, -1:].expand(-1, gap, -1, -1, -1)
            frames_VnSS3 = torch.cat([frames_VnSS3, last], dim=1)
        found = clip_features(
            tower, frames_VnSS3.reshape(visuals * chunks, chunk, *frames_VnSS3.shape[2:]), layer
        )
        found = found.reshape(visuals, chunks * chunk // tubelet, *found.shape[2:])
        return found[:, : -(-frames // tubelet)]

    return features


def channels_first(frames: torch.Tensor) -> torch.Tensor:
    """[..., S, S, 3] -> [..., 3, S, S]."""
    return frames.movedim(-1, -3)


def without_prefix(tokens_BMD: torch.Tensor, grid: tuple[int, int], prefix: int) -> torch.Tensor:
    """Drops class, register and other tokens in front of those of the grid.

    Raises:
      ValueError: there are not `prefix` of them.
    """
    tokens = grid[0] * grid[1]
    if tokens_BMD.shape[1] != prefix + tokens:
        raise ValueError(
            f"the encoder gives {tokens_BMD.shape[1]} tokens for a grid of {grid[0]} x {grid[1]} "
            f"and {prefix} tokens before it: its image_size or patch_size is not what it says"
        )
    return tokens_BMD[:, prefix:]


def leaf_parameters(module: nn.Module, but: tuple[str, ...] = ()) -> Iterator[nn.Module]:
    """A module's parameters, without those that features never touch, as modules.

    Args:
      module: for instance an embedding with a mask token that only pretraining reads.
      but: names of parameters to leave out.
    """
    yield nn.ParameterList([p for name, p in module.named_parameters() if name not in but])


def clip_frames(config: Any) -> int:
    """`num_frames` of a configuration: the clip that a video encoder is made for."""
    return config.num_frames


def require_clip(config: PretrainedConfig, frames: int, lone: bool = False) -> None:
    """Refuses a clip that a video encoder has no time embedding for.

    Raises:
      ValueError: `frames` is not `config.num_frames`, nor 1 where a `lone` frame is allowed.
    """
    if frames != config.num_frames and not (lone and frames == 1):
        raise ValueError(
            f"chunk = {frames} must be num_frames = {config.num_frames} of the encoder's "
            "configuration, which has as many time embeddings"
        )
