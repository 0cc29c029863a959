"""`codecvit export --onnx`: the encoder as an ONNX graph beside the PyTorch files.

Its inputs are those that `torch_input` makes, with any number of samples and tokens:
`pixel_values` float32 [B, 3, P, S*P], a row of patches; `patch_positions` int64 [B, S, 3];
`attention_mask` bool [B, S]. Its outputs are `last_hidden_state` [B, S, D] and `pooler_output`
[B, D]. Float32. Imports torch and transformers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from .folder import ONNX
from .hf.configuration_onevision_encoder import OneVisionEncoderConfig
from .hf.modeling_onevision_encoder import OneVisionEncoderModel

INPUTS = ("pixel_values", "patch_positions", "attention_mask")
OUTPUTS = ("last_hidden_state", "pooler_output")


def write_onnx(
    folder: Path, tensors: Mapping[str, np.ndarray], settings: Mapping[str, object]
) -> None:
    """Writes the graph, and its weights beside it where they are too large for one buffer.

    Args:
      folder: where to.
      tensors: float32 weights under their published names.
      settings: the published configuration.
    """
    config = OneVisionEncoderConfig(**settings, attn_implementation="sdpa")
    model = OneVisionEncoderModel(config)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    side, samples, tokens = config.patch_size, torch.export.Dim("batch"), torch.export.Dim("tokens")
    # Any example does, as long as no size is 1: that would be taken for a constant.
    B, S = 2, 6
    example = (
        torch.zeros(B, 3, side, S * side),
        torch.zeros(B, S, 3, dtype=torch.int64),
        torch.ones(B, S, dtype=torch.bool),
    )
    sizes = ({0: samples, 3: side * tokens}, {0: samples, 1: tokens}, {0: samples, 1: tokens})
    with warnings.catch_warnings():
        # The sizes "tokens" of three inputs are one and the same, as they should be.
        warnings.filterwarnings("ignore", message="# The axis name")
        program = torch.onnx.export(
            _Row(model).eval(),
            example,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=sizes,
            dynamo=True,
            verbose=False,
        )
    program.save(folder / ONNX)


class _Row(torch.nn.Module):
    """The model with three inputs and two outputs in a fixed order."""

    def __init__(self, model: OneVisionEncoderModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: torch.Tensor,
        patch_positions: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.model(
            pixel_values, patch_positions=patch_positions, attention_mask=attention_mask
        )
        return out.last_hidden_state, out.pooler_output
