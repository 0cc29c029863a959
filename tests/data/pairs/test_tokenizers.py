"""Tokenizers: the layout of texts and targets, truncation, three kinds of files."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from codecvit.data.tokenizers import open_tokenizer

VOCABULARY = ["[PAD]", "[bos]", "[eos]", "[UNK]", "[CLS]", "a", "seven", "over", "flower", "##s"]
VOCABULARY += ["[", "cls", "]", ",", ".", "##un", "fl"]
PAD, BOS, EOS, UNK, CLS, A, SEVEN, OVER, FLOWER, S = range(10)


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def tokenizer(vocabulary):
    return open_tokenizer(vocabulary)


def test_layout_of_a_text(tokenizer):
    """[bos] tokens [eos] pad ... [CLS], as published."""
    assert tokenizer.vocab_size == len(VOCABULARY)
    found = tokenizer.encode("A SEVEN over flowers", 10)
    assert found.dtype == np.int32
    assert found.tolist() == [BOS, A, SEVEN, OVER, FLOWER, S, EOS, PAD, PAD, CLS]


def test_layout_of_a_target(tokenizer):
    """One step ahead of what a decoder is given, which is the target shifted behind [bos]."""
    ids, mask = tokenizer.target("a seven", 5)
    assert ids.tolist() == [A, SEVEN, EOS, PAD, PAD] and mask.tolist() == [1, 1, 1, 0, 0]
    assert ids.dtype == np.int32 and mask.dtype == bool


@pytest.mark.parametrize("length", [4, 5, 6, 9])
def test_a_long_text_keeps_its_end_and_cls(tokenizer, length):
    found = tokenizer.encode("a seven over " * 5, length).tolist()
    assert len(found) == length and found[0] == BOS and found[-2:] == [EOS, CLS]
    assert found[1:-2] == ([A, SEVEN, OVER] * 5)[: length - 3]
    ids, mask = tokenizer.target("a seven over " * 5, length)
    assert ids.tolist() == [*([A, SEVEN, OVER] * 5)[: length - 1], EOS] and mask.all()


def test_an_exactly_fitting_text_is_whole(tokenizer):
    assert tokenizer.encode("a seven over", 6).tolist() == [BOS, A, SEVEN, OVER, EOS, CLS]
    assert tokenizer.encode("", 5).tolist() == [BOS, EOS, PAD, PAD, CLS]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sévén,over.", [SEVEN, VOCABULARY.index(","), OVER, VOCABULARY.index(".")]),  # accents
        ("seven\tover\n", [SEVEN, OVER]),
        ("zebra a", [UNK, A]),
        # The longest piece first; a word that does not go up is unknown as a whole.
        ("flowers flun flxs", [FLOWER, S, VOCABULARY.index("fl"), VOCABULARY.index("##un"), UNK]),
        # What a caption says is never a special token.
        ("[CLS] a", [VOCABULARY.index("["), VOCABULARY.index("cls"), VOCABULARY.index("]"), A]),
        ("a\x00 \ufffdseven", [A, SEVEN]),  # control characters are dropped
    ],
)
def test_wordpiece(tokenizer, text, expected):
    assert tokenizer.tokens(text) == expected


def test_decoding_stops_at_the_end(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a seven over flowers", 20)) == "a seven over flowers"
    assert tokenizer.decode([BOS, A, EOS, SEVEN, CLS]) == "a"


def test_it_travels_to_workers(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
    assert again.encode("a seven", 6).tolist() == tokenizer.encode("a seven", 6).tolist()


def test_tokenizer_json_gives_the_same_ids(tokenizer, tmp_path):
    library = pytest.importorskip("tokenizers")
    model = library.Tokenizer(
        library.models.WordPiece({w: i for i, w in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    model.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    # As files of others have it: special tokens, a frame, padding and truncation of their own.
    model.add_special_tokens(["[CLS]", "[eos]"])
    model.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [eos]", special_tokens=[("[CLS]", CLS), ("[eos]", EOS)]
    )
    model.enable_truncation(4)
    model.enable_padding(length=30)
    model.save(str(tmp_path / "tokenizer.json"))
    other = open_tokenizer(tmp_path / "tokenizer.json")
    assert other.ids == tokenizer.ids and other.vocab_size == tokenizer.vocab_size
    for text in ("A SEVEN over flowers, a seven.", "[CLS] a", "zebra"):
        assert other.tokens(text) == tokenizer.tokens(text)


def test_sentencepiece(tmp_path):
    library = pytest.importorskip("sentencepiece")
    lines = tmp_path / "lines.txt"
    lines.write_text("a seven over flowers\nseven flowers over a flower\n" * 20)
    library.SentencePieceTrainer.train(
        input=str(lines),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=32,
        hard_vocab_limit=False,
        pad_id=3,
        user_defined_symbols=["<cls>"],
        minloglevel=2,
    )
    tokenizer = open_tokenizer(tmp_path / "sp.model")
    assert tokenizer.ids.pad == 3 and len({*vars(tokenizer.ids).values()}) == 4
    row = tokenizer.encode("a seven over flowers", 40)
    assert row[0] == tokenizer.ids.bos and row[-1] == tokenizer.ids.cls
    assert tokenizer.decode(row) == "a seven over flowers"
    assert pickle.loads(pickle.dumps(tokenizer)).tokens("a") == tokenizer.tokens("a")  # noqa: S301
    with pytest.raises(ValueError, match="no token for cls.*'\\[CLS\\]'"):
        open_tokenizer(tmp_path / "sp.model", cls="[CLS]")


def test_a_missing_special_token_is_named_and_can_be_given(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"]))
    with pytest.raises(ValueError, match=r"\(5 tokens\) has no token for bos"):
        open_tokenizer(path)
    tokenizer = open_tokenizer(path, bos="[SEP]", eos=3)
    assert tokenizer.encode("a", 5).tolist() == [3, 4, 3, 0, 2]
    with pytest.raises(ValueError, match="no token for eos: looked for 5"):
        open_tokenizer(path, bos="[SEP]", eos=5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", "[PAD]\n[UNK]\na\na\n", "'a' twice"),
        ("vocab.txt", "[PAD]\na\n", "holds no \\[UNK\\]"),
        ("tokenizer.json", "{}", "is no tokenizer.json"),
        ("vocab.bin", "a", "must be a vocabulary"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        open_tokenizer(tmp_path / name)
    with pytest.raises(ValueError, match="does not exist"):
        open_tokenizer(tmp_path / "none" / name)


@pytest.mark.parametrize(("call", "least"), [("encode", 4), ("target", 2)])
def test_too_short_rows_are_refused(tokenizer, call, least):
    with pytest.raises(ValueError, match=f"at least {least}"):
        getattr(tokenizer, call)("a", least - 1)
