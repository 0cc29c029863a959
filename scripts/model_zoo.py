"""Writes docs/model_zoo.md from src/configs/openvision.py: parameters, tokens, FLOPs, figures.

python scripts/model_zoo.py            # write it
python scripts/model_zoo.py --check    # exit 1 if it is not what would be written
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax

from codecvit.configs.openvision import MODELS, STAGES, get_config
from codecvit.models import clip
from codecvit.trainers.contrastive_config import ContrastiveConfig
from codecvit.trainers.flops import train_flops_per_token

PAGE = Path(__file__).resolve().parent.parent / "docs" / "model_zoo.md"
HEAD = """# Model zoo

Made by `python scripts/model_zoo.py`; do not edit. Every row is a config:
`src/configs/openvision.py:img=NAME,stage=STAGE`.

Parameters are counted on the models as built here: image tower with its head, text tower, caption
decoder of version 1. Tokens are patches of one image; GFLOPs are those of the image tower's blocks
for one image, forward alone, by the analytic count of [`flops.py`](../src/trainers/flops.py).
**Figures of ImageNet-1k zero-shot top-1 are the authors' own** (OpenVision's README; 12.8 billion
pairs and more on TPU pods). None has been reproduced here, and there is no checkpoint of ours of
any of these rows.

| model | image | text | decoder | resolution | tokens | GFLOPs | ImageNet, theirs | ours |
|---|---|---|---|---|---|---|---|---|
"""
TAIL = """
To measure a checkpoint of a row, ours or a published one after `codecvit import`:

```bash
codecvit evaluate-pairs CHECKPOINT --tokenizer vocab.txt --zero-shot records:IMAGENET_VAL \\
    --classes classes.txt --dataset imagenet --templates imagenet --canonical
codecvit evaluate-pairs CHECKPOINT --tokenizer vocab.txt --retrieval records:COCO_VAL
```
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args()
    text = HEAD + "".join(line + "\n" for name in MODELS for line in rows(name)) + TAIL
    if args.check:
        return int(PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


def rows(name: str) -> list[str]:
    """The lines of one model, a line per resolution."""
    made = get_config(f"img={name}")
    config = ContrastiveConfig.from_dict(made.to_dict())
    shapes = jax.eval_shape(lambda key: clip.init(config.model, key), jax.random.key(0))
    millions = {part: count(tree) / 1e6 for part, tree in shapes.items()}
    image = millions["encoder"] + millions["image_head"]
    numbers = f"{image:,.1f}M | {millions['text']:,.1f}M | {millions['decoder']:,.1f}M"
    lines = []
    for resolution in dict.fromkeys(MODELS[name].res):
        tokens = (resolution // config.model.vision.patch) ** 2
        # A third of forward and backward; the class token is one more.
        flops = (tokens + 1) * train_flops_per_token(config.model.vision, tokens + 1) / 3
        theirs = MODELS[name].imagenet.get(resolution)
        figure = f"{theirs:.1f} %" if theirs else "not published"
        stage = list(STAGES)[MODELS[name].res.index(resolution)]
        lines.append(
            f"| {name} | {numbers} | {resolution} ({stage}) | {tokens:,} | {flops / 1e9:,.1f} | "
            f"{figure} | not run |"
        )
    return lines


def count(tree: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    sys.exit(main())
