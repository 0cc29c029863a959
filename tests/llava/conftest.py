"""Tiny parts of a video language model, made on the spot: nothing is downloaded."""

from __future__ import annotations

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, Phi3Config, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

from codecvit.convert.hf.configuration_onevision_encoder import OneVisionEncoderConfig
from codecvit.convert.hf.modeling_onevision_encoder import OneVisionEncoderModel

PATCH = 4
SPECIALS = {
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama2": ["<unk>", "<s>", "</s>"],
    "llama3": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ],
    "phi3": ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"]
    + ["<|end|>"],
}
SPECIALS["vicuna"] = SPECIALS["llama2"]
ENDS = {
    "chatml": "<|im_end|>",
    "llama2": "</s>",
    "llama3": "<|eot_id|>",
    "phi3": "<|end|>",
    "vicuna": "</s>",
}
PADS = {
    "chatml": "<|endoftext|>",
    "llama2": "<unk>",
    "llama3": "<|end_of_text|>",
    "phi3": "<|endoftext|>",
    "vicuna": "<unk>",
}

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": 256,
}


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    torch.set_num_threads(1)


def make_tokenizer(template: str = "chatml") -> PreTrainedTokenizerFast:
    """Bytes, and the special tokens that `template` needs, from id 256 on; no BOS is added."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIALS[template]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=ENDS[template], pad_token=PADS[template]
    )


@pytest.fixture(scope="session")
def tokenizer():
    """A ChatML tokenizer without BOS, of 256 bytes and three special tokens."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_for():
    """template -> tokenizer."""
    return make_tokenizer


def language_config(kind="qwen2", **changes):
    """The configuration of a tiny language model of this type."""
    kinds = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig, "phi3": Phi3Config}
    fields = {**TEXT, **changes}
    if kind == "qwen3":
        fields["head_dim"] = 16
    return kinds[kind](**fields)


def vision_config(**changes):
    """The configuration of a tiny encoder, with patches of 4 x 4 pixels."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    fields = {**sizes, "num_attention_heads": 2, "image_size": 32, "patch_size": PATCH, **changes}
    return OneVisionEncoderConfig(**fields)


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory):
    """An encoder folder as an export writes it, with weights that make positions matter."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("parts") / "encoder"
    model = OneVisionEncoderModel(vision_config())
    for name, parameter in model.named_parameters():
        if name.endswith("proj.weight"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoders(encoder_dir, tmp_path_factory):
    """Sources of two encoders: ours, which reads patches, and SigLIP, which reads frames."""
    from .several import sources, write_siglip

    return sources(encoder_dir, write_siglip(tmp_path_factory.mktemp("parts") / "siglip"))


@pytest.fixture(scope="session")
def lm_dir(tmp_path_factory, tokenizer):
    """A tiny Qwen2 folder with its tokenizer."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("parts") / "lm"
    model = AutoModelForCausalLM.from_config(language_config())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_config():
    """fields -> LlavaConfig of the tiny parts."""
    from codecvit.llava import LlavaConfig

    def make(kind="qwen2", **fields):
        return LlavaConfig(vision_config(), language_config(kind), **fields)

    return make


@pytest.fixture(scope="session")
def make_model(encoder_dir):
    """fields -> a model in eval mode; equal fields give equal weights."""
    from codecvit.llava import LlavaForConditionalGeneration

    def make(kind="qwen2", seed=0, **fields):
        fields.setdefault("template", "chatml")
        torch.manual_seed(seed)
        text = language_config(kind)
        return LlavaForConditionalGeneration.from_parts(encoder_dir, text, **fields)

    return make


def make_visual(seed=0, frames=1, rows=4, columns=4, keep=None):
    """patches uint8 [L, K], positions int64 [L, 3], grid; `keep` of them at random places."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.cartesian_prod(torch.arange(frames), torch.arange(rows), torch.arange(columns))
    if keep is not None:
        places = places[torch.randperm(len(places), generator=generator)[:keep].sort().values]
    size = (len(places), 3 * PATCH**2)
    patches = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    return patches, places.view(-1, 3), (rows, columns)


@pytest.fixture(scope="session")
def visual():
    """The maker of visuals."""
    return make_visual


@pytest.fixture(scope="session")
def batch():
    """config, rows -> arguments of `forward`; a row is a list of ids (int) and visuals.

    Rows are padded with 256, on the right or the left; every id is supervised but those of
    visuals and padding.
    """
    from codecvit.llava import VISUAL_TOKEN, num_visual_tokens

    def make(config, rows, left=False, labels=False):
        ids, visuals = [], []
        for row in rows:
            out = []
            for item in row:
                if isinstance(item, int):
                    out.append(item)
                else:
                    visuals.append(item)
                    out += [VISUAL_TOKEN] * num_visual_tokens(config, item[1].numpy(), item[2])
            ids.append(out)
        longest = max(map(len, ids))

        def pad(values, with_):
            gap = [with_] * (longest - len(values))
            return gap + values if left else values + gap

        arguments = {
            "input_ids": torch.tensor([pad(x, 256) for x in ids]),
            "attention_mask": torch.tensor([pad([1] * len(x), 0) for x in ids]),
        }
        if visuals:
            arguments |= {
                "patches": torch.cat([v[0] for v in visuals]),
                "positions": torch.cat([v[1] for v in visuals]),
                "lengths": torch.tensor([len(v[0]) for v in visuals]),
                "grids": torch.tensor([v[2] for v in visuals]),
            }
        if labels:
            wanted = arguments["attention_mask"].bool() & (arguments["input_ids"] >= 0)
            arguments["labels"] = arguments["input_ids"].where(wanted, -100)
        return arguments

    return make
