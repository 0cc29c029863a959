"""The model card of an exported image-text folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..card import run_sections
from ..folder import DECODER
from .settings import ClipOrigin, Parts

_OPENCLIP = """\
import open_clip  # 3.3 or later: its tokenizer mode "clips"
import torch
from PIL import Image

model, preprocess = open_clip.create_model_from_pretrained("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
with torch.no_grad():
    image = model.encode_image(preprocess(Image.open("photo.jpg"))[None], normalize=True)
    text = model.encode_text(tokenizer(["a dog", "a cat"]), normalize=True)
print((model.logit_scale.exp() * image @ text.T).softmax(-1))"""

_HF = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained(FOLDER, trust_remote_code=True)
pixels = processor(Image.open("photo.jpg"), return_tensors="pt")["pixel_values"]
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
ids = model.prepare_texts(tokenizer, ["a dog", "a cat"])
with torch.no_grad():
    print(model(pixel_values=pixels, input_ids=ids).logits_per_image.softmax(-1))"""

_HF_IMAGE = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained(FOLDER, trust_remote_code=True)
with torch.no_grad():
    out = model(**processor(Image.open("photo.jpg"), return_tensors="pt"))
out.last_hidden_state, out.pooler_output"""


def clip_card(
    parts: Parts,
    origin: ClipOrigin,
    layout: str,
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """The text of README.md.

    Args:
      parts: sizes of the model.
      origin: dtype and image size.
      layout: "openclip" or "hf".
      training: the run's resolved configuration.
      metrics: its last ones.

    Returns:
      Markdown with the header that the Hugging Face Hub reads.
    """
    vision, text = parts.vision, parts.text
    library = "open_clip" if layout == "openclip" else "transformers"
    task = "zero-shot-image-classification" if text else "image-feature-extraction"
    code = _OPENCLIP if layout == "openclip" else _HF if text else _HF_IMAGE
    towers = f"Image tower: width {vision.width}, {vision.depth} blocks, patches of {vision.patch}"
    towers += f" x {vision.patch} pixels, images of {origin.image_size} pixels."
    if text is not None:
        towers += f" Text tower: width {text.width}, {text.depth} blocks, {text.context_length}"
        towers += f" tokens of {text.vocab_size}. Embedding: {text.embed_dim}."
    if parts.decoder is not None:
        towers += f"\n`{DECODER}` holds the caption decoder ({parts.decoder.depth} blocks), which "
        towers += "`codecvit.load_clip` and `codecvit import` read."
    return f"""\
---
library_name: {library}
pipeline_tag: {task}
tags: [clip, vision]
---
# Image-text model

{"Trained by CodecViT." if training else "Imported and written by CodecViT."} The architecture is \
that of OpenVision (arXiv 2505.04601), weights in {origin.dtype}.
{towers}

```python
{code}
```

`codecvit.load_clip(FOLDER)` opens the same folder in JAX.
""" + run_sections(training, metrics)
