"""Texts -> token ids: a WordPiece vocabulary, a tokenizer.json or a SentencePiece model.

The layout of a text and of a caption target is that of OpenVision (arXiv 2505.04601).

Shape suffixes: T text tokens, O target tokens.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import sentencepiece
    import tokenizers

_UNKNOWN = "[UNK]"
# Names under which vocabularies hold the tokens that frame a text; the first that is there is it.
_NAMES = {
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "bos": ("[bos]", "[BOS]", "<s>", "<bos>", "<|startoftext|>", "<|begin_of_text|>"),
    "eos": ("[eos]", "[EOS]", "</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>"),
    "cls": ("[CLS]", "<cls>", "<|cls|>"),
}


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens that frame a text: padding, begin, end, and the one that is read out."""

    pad: int
    bos: int
    eos: int
    cls: int


class Tokenizer(abc.ABC):
    """What turns texts into ids; travels to worker processes. Made by `open_tokenizer`.

    Attributes:
      path: its file.
      vocab_size: ids lie in 0 .. vocab_size - 1.
      ids: the special ones.
    """

    def __init__(self, path: Path, vocab_size: int, ids: SpecialIds) -> None:
        self.path, self.vocab_size, self.ids = path, vocab_size, ids

    @abc.abstractmethod
    def tokens(self, text: str) -> list[int]:
        """Ids of a text without special ones; names of special tokens in it are plain text."""

    @abc.abstractmethod
    def _join(self, ids: list[int]) -> str:
        """The text of ordinary ids."""

    def encode(self, text: str, length: int) -> np.ndarray:
        """A text for a text encoder.

        Args:
          text: any.
          length: T, at least 4.

        Returns:
          int32 [T]: begin, tokens, end, padding, and `cls` at the last place; of a long text the
          last tokens are left out.

        Raises:
          ValueError: there is no room for the special ids and one token.
        """
        if length < 4:
            raise ValueError(f"token_len = {length} must be at least 4: begin, a token, end, [CLS]")
        inside = [self.ids.bos, *self.tokens(text)[: length - 3], self.ids.eos]
        padding = [self.ids.pad] * (length - 1 - len(inside))
        return np.array([*inside, *padding, self.ids.cls], np.int32)

    def target(self, text: str, length: int) -> tuple[np.ndarray, np.ndarray]:
        """A caption as a decoder has to say it: one step ahead of a text that starts with `bos`.

        Args:
          text: any.
          length: O, at least 2.

        Returns:
          ids int32 [O]: tokens, end, padding; of a long text the last tokens are left out, not its
          end. mask bool [O]: False where there is padding.

        Raises:
          ValueError: there is no room for a token and the end.
        """
        if length < 2:
            raise ValueError(f"output_token_len = {length} must be at least 2: a token and the end")
        inside = [*self.tokens(text)[: length - 1], self.ids.eos]
        ids = np.full(length, self.ids.pad, np.int32)
        ids[: len(inside)] = inside
        return ids, np.arange(length) < len(inside)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first end; special ids are left out."""
        special = {self.ids.pad, self.ids.bos, self.ids.cls}
        kept = []
        for token in map(int, ids):
            if token == self.ids.eos:
                break
            if token not in special:
                kept.append(token)
        return self._join(kept)


def open_tokenizer(
    path: str | Path,
    *,
    pad: str | int | None = None,
    bos: str | int | None = None,
    eos: str | int | None = None,
    cls: str | int | None = None,
) -> Tokenizer:
    """Opens a tokenizer by the ending of its file.

    Args:
      path: `.txt`, a lower-casing WordPiece vocabulary of one token a line (BERT, arXiv
        1810.04805); `.json`, a tokenizer.json of the library `tokenizers`; `.model`, SentencePiece.
      pad, bos, eos, cls: the token (text or id) of each role, where it has no usual name.

    Returns:
      The tokenizer.

    Raises:
      ValueError: the file is missing, of another kind or damaged, a library is not installed, or a
        special token is not in the vocabulary.
    """
    path = Path(path)
    named = {"pad": pad, "bos": bos, "eos": eos, "cls": cls}
    if not path.is_file():
        raise ValueError(f"tokenizer {path} does not exist")
    if path.suffix == ".txt":
        return _open_vocabulary(path, named)
    if path.suffix == ".json":
        return _open_json(path, named)
    if path.suffix == ".model":
        return _open_sentencepiece(path, named)
    raise ValueError(
        f"tokenizer {path} must be a vocabulary (.txt), a tokenizer.json or a SentencePiece .model"
    )


class _Fast(Tokenizer):
    """One of the library `tokenizers`."""

    def __init__(self, path: Path, model: tokenizers.Tokenizer, ids: SpecialIds) -> None:
        super().__init__(path, model.get_vocab_size(with_added_tokens=True), ids)
        self._model = model

    def tokens(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def _join(self, ids: list[int]) -> str:
        return self._model.decode(ids, skip_special_tokens=False)


class _Sentencepiece(Tokenizer):
    """One of the library `sentencepiece`."""

    def __init__(
        self, path: Path, model: sentencepiece.SentencePieceProcessor, ids: SpecialIds
    ) -> None:
        super().__init__(path, model.get_piece_size(), ids)
        self._model = model

    def tokens(self, text: str) -> list[int]:
        return self._model.encode(text)

    def _join(self, ids: list[int]) -> str:
        return self._model.decode(ids)


def _open_vocabulary(path: Path, named: dict[str, str | int | None]) -> Tokenizer:
    library = _tokenizers(path)
    # Not `splitlines`: some tokens are characters that it takes for ends of lines.
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    words = [line.removesuffix("\r") for line in lines]
    vocabulary = {word: number for number, word in enumerate(words)}
    if len(vocabulary) < len(words):
        twice = next(word for number, word in enumerate(words) if vocabulary[word] != number)
        raise ValueError(f"{path} holds the token {twice!r} twice: ids would be ambiguous")
    if _UNKNOWN not in vocabulary:
        raise ValueError(f"{path} holds no {_UNKNOWN}: it is no WordPiece vocabulary")
    # No special tokens are declared to the library: "[CLS]" in a caption is text.
    model = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token=_UNKNOWN))
    model.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    model.decoder = library.decoders.WordPiece()
    return _Fast(path, model, _special_ids(path, named, vocabulary.get, len(vocabulary)))


def _open_json(path: Path, named: dict[str, str | int | None]) -> Tokenizer:
    library = _tokenizers(path)
    try:
        model = library.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 -- the library raises bare Exception
        raise ValueError(f"{path} is no tokenizer.json: {error}") from error
    model.no_padding()
    model.no_truncation()
    model.encode_special_tokens = True  # written in a caption, they are text
    size = model.get_vocab_size(with_added_tokens=True)
    return _Fast(path, model, _special_ids(path, named, model.token_to_id, size))


def _open_sentencepiece(path: Path, named: dict[str, str | int | None]) -> Tokenizer:
    try:
        import sentencepiece
    except ImportError as error:
        raise ValueError(
            f"{path} needs the library sentencepiece: pip install 'codecvit[sentencepiece]'"
        ) from error
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path} is no SentencePiece model: {error}") from error

    def find(token: str) -> int | None:
        number = model.piece_to_id(token)
        return number if model.id_to_piece(number) == token else None

    return _Sentencepiece(path, model, _special_ids(path, named, find, model.get_piece_size()))


def _tokenizers(path: Path) -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            f"{path} needs the library tokenizers: pip install 'codecvit[train]'"
        ) from error
    return tokenizers


def _special_ids(
    path: Path,
    named: Mapping[str, str | int | None],
    find: Callable[[str], int | None],
    size: int,
) -> SpecialIds:
    """The ids of the four roles: what was named, or else what goes by a usual name."""
    found = {}
    for role, token in named.items():
        if isinstance(token, int):
            number = token if 0 <= token < size else None
        else:
            names = _NAMES[role] if token is None else (token,)
            number = next((n for n in map(find, names) if n is not None), None)
        if number is None:
            wanted = f"one of {', '.join(_NAMES[role])}" if token is None else repr(token)
            raise ValueError(
                f"{path} ({size} tokens) has no token for {role}: looked for {wanted}; name one of "
                f"its tokens, {role}=..."
            )
        found[role] = number
    return SpecialIds(**found)
