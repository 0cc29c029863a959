"""The tokenizer of an image-text folder: as it was trained with, and in Hugging Face's form.

OpenCLIP's tokenizer mode "clips" and our own loader make the same ids of it: begin, tokens, end,
padding, and the class token at the last place.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ...data.tokenizers import Tokenizer, open_tokenizer
from ...files import write_json
from ..weights import read_json

_ROLES = ("pad", "bos", "eos", "cls")
# BERT's own vocabulary, where OpenVision's has [bos] and [eos] in their places.
_BERT = {"bos": "[unused0]", "eos": "[unused1]"}


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes the files of a tokenizer into a folder.

    Args:
      folder: where to.
      tokenizer: as `open_tokenizer` made it. Of SentencePiece only the model is written: OpenCLIP
        does not open it.
    """
    kind = tokenizer.path.suffix
    if kind == ".model":
        shutil.copyfile(tokenizer.path, folder / "tokenizer.model")
        return
    import tokenizers

    if kind == ".txt":
        shutil.copyfile(tokenizer.path, folder / "vocab.txt")
        words = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
        vocabulary = {word.removesuffix("\r"): number for number, word in enumerate(words)}
        model = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
        model.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        model.decoder = tokenizers.decoders.WordPiece()
    else:
        model = tokenizers.Tokenizer.from_file(str(tokenizer.path))
    roles = {role: model.id_to_token(getattr(tokenizer.ids, role)) for role in _ROLES}
    if kind == ".txt":
        model.add_special_tokens([*dict.fromkeys(roles.values()), "[UNK]"])
    model.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids"],
            "clean_up_tokenization_spaces": False,
            **{f"{role}_token": token for role, token in roles.items()},
            **({"unk_token": "[UNK]"} if kind == ".txt" else {}),
        },
        sort_keys=True,
    )


def tokenizer_file(folder: Path) -> Path | None:
    """The tokenizer of an exported or published folder; None where it has none."""
    names = ("vocab.txt", "tokenizer.json", "tokenizer.model")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def open_beside(file: Path) -> Tokenizer:
    """Opens a tokenizer with the special tokens that the tokenizer_config.json beside it names.

    Args:
      file: as for `open_tokenizer`; a vocabulary of BERT's has OpenVision's in its unused places.

    Raises:
      ValueError: it cannot be opened.
    """
    settings = file.parent / "tokenizer_config.json"
    stated = read_json(settings) if settings.is_file() else {}
    roles = {role: _text(stated.get(f"{role}_token")) for role in _ROLES}
    if file.suffix == ".txt" and file.is_file() and roles["bos"] is None:
        words = file.read_text(encoding="utf-8").split("\n", 3)[:3]
        roles |= {role: token for role, token in _BERT.items() if token in words}
    return open_tokenizer(file, **roles)


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
