"""The model card of an exported folder: what the encoder is, how to load it, how it was trained."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..models.config import ViTConfig
from .weights import read_json

# The rest of metrics.jsonl is about speed and bookkeeping.
_REPORTED = ("train/", "probe/", "zero_shot/", "retrieval/")


def model_card(
    config: ViTConfig,
    dtype: str,
    image_size: int,
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """The text of README.md.

    Args:
      config: sizes of the encoder.
      dtype: of the stored weights.
      image_size: side in pixels that the image processor makes.
      training: the run's resolved configuration; the counts of its record sets are read where they
        still lie.
      metrics: its last ones.

    Returns:
      Markdown with the header that the Hugging Face Hub reads.
    """
    origin = "Trained by CodecViT." if training else "Imported and written by CodecViT."
    card = f"""\
---
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [vision, video, codec]
---
# Vision encoder for images, frames and codec-selected patches

{origin} A vision transformer with a 3-D rotary position code (t, h, w). Width {config.width},
{config.depth} blocks, {config.num_heads} heads, patches of {config.patch} x {config.patch} pixels,
weights in {dtype}. Parameter names, configuration and call are those of the published
onevision-encoder (arXiv 2602.08683).

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained(FOLDER, trust_remote_code=True)
with torch.no_grad():
    out = model(**processor(Image.open("photo.jpg"), return_tensors="pt"))
out.last_hidden_state  # [1, {(image_size // config.patch) ** 2}, {config.width}]
out.pooler_output  # [1, {config.width}]
```

Video: `pixel_values` [B, 3, T, height, width] with `patch_positions` [B, tokens, 3] = (t, h, w),
t spread over 64 slots. Selected patches:
`codecvit.convert.torch_input(codecvit.pack_video("clip.mp4"))` makes the arguments of the model.
`codecvit.load(FOLDER)` opens the same folder in JAX.
"""
    return card + run_sections(training, metrics)


def run_sections(training: Mapping[str, Any] | None, metrics: Mapping[str, float] | None) -> str:
    """The sections of a card about the run: last metrics, record sets, configuration."""
    card = ""
    if metrics:
        step = int(metrics["step"])
        rows = [f"| {name} | {metrics[name]:.4g} |" for name in sorted(metrics) if name != "step"]
        card += f"\n## Metrics at step {step:,}\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n"
    if training:
        card += _training_data(training)
        settings = json.dumps(training, indent=2, sort_keys=True)
        card += f"\n## Training configuration\n\n```json\n{settings}\n```\n"
    return card


def last_metrics(checkpoint: Path) -> dict[str, float]:
    """The last value of each metric of training and evaluation up to a checkpoint.

    Args:
      checkpoint: WORKDIR/checkpoints/STEP.

    Returns:
      Finite numbers by name, and `step`; empty where there is no WORKDIR/metrics.jsonl.
    """
    path = checkpoint.parent.parent / "metrics.jsonl"
    if not checkpoint.name.isdecimal() or not path.is_file():
        return {}
    found: dict[str, float] = {"step": int(checkpoint.name)}
    for line in path.read_text().splitlines():
        if not line.endswith("}"):
            continue  # the run was killed, or is at work
        row = json.loads(line)
        if row["step"] <= found["step"]:
            found |= {
                name: value
                for name, value in row.items()
                if name.startswith(_REPORTED) and math.isfinite(value)
            }
    return found


def _training_data(training: Mapping[str, Any]) -> str:
    rows = []
    for name, source in training.get("sources", {}).items():
        # Of pairs with texts, KIND:PATH; only record sets count themselves.
        for place in (source.get("records") or source.get("pairs", "")).split("+"):
            folder = place.removeprefix("records:")
            manifest = Path(folder) / "manifest.json"
            if manifest.is_file():
                packed = read_json(manifest)
                counts = f"{packed['mode']} | {packed['records']:,} | {packed['tokens']['sum']:,}"
                rows.append(f"| {name} | {Path(folder).name} | {counts} |")
    if not rows:
        return ""
    header = "| source | set | mode | records | patches |\n|---|---|---|---|---|"
    return f"\n## Training data\n\n{header}\n" + "\n".join(rows) + "\n"
