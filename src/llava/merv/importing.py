"""A published checkpoint of MERV -> a model's folder.

    codecvit llava import merv merv-checkpoints/merv-full --out merv-full --lm Llama-2-7b-hf \\
        --encoder languagebind=LanguageBind_Video_merge \\
        --encoder dinov2=dinov2-with-registers-large \\
        --encoder vivit=vivit-b-16x2-kinetics400 --encoder siglip=siglip-base-patch16-224

The checkpoint has projectors, fusion and language model, each tensor of which has to find its place
and each place its tensor; the encoders, which MERV leaves as they are, come from folders of their
own, and configuration and tokenizer of the language model from --lm.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..model.fusion import CHANNELS, Fusion, QueryScore
from ..model.modeling import LlavaForConditionalGeneration
from ..templates import TEMPLATES as OURS
from ..training.config import DTYPES
from .checkpoint import TEMPLATES, MervConfig, Tensors, fill, projector_name, read_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD = "<PAD>"
"""What MERV adds to tokenizers without a padding token."""

LM = "llm."
_BUFFER = "rotary_emb.inv_freq"


def import_merv(
    folder: Path,
    encoders: dict[str, str],
    language_model: str,
    template: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase]:
    """The model of a checkpoint.

    Args:
      folder: with config.json and checkpoints/latest-checkpoint.pt.
      encoders: name -> folder, or name on the hub, of every encoder that it was trained with.
      language_model: folder or name on the hub with config.json and tokenizer; no weights are read.
      template: of conversations; None: that of MERV's language model.
      dtype: of all parameters.

    Raises:
      ValueError: the checkpoint is not supported, an encoder is missing, or tensors do not fit.
      OSError: a name on the hub cannot be fetched.
    """
    from transformers import AutoConfig, AutoTokenizer

    config = MervConfig.read(folder)
    names = [backbone.name for backbone in config.backbones]
    if sorted(names) != sorted(encoders):
        raise ValueError(
            f"{folder} was trained with the encoders {', '.join(names)}, and folders are given of "
            f"{', '.join(encoders) or 'none'}: give --encoder NAME=FOLDER of each"
        )
    template = template or TEMPLATES.get(config.language_model)
    if template is None:
        raise ValueError(
            f"{folder}: llm_backbone_id = {config.language_model!r} says no template of ours: give "
            f"--template, one of {', '.join(OURS)}"
        )
    tensors = read_tensors(folder)
    text = AutoConfig.from_pretrained(language_model)
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    text.vocab_size = _rows(tensors["llm_backbone"], folder)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    if len(tokenizer) > text.vocab_size:
        raise ValueError(
            f"the tokenizer of {language_model} has {len(tokenizer)} tokens, the checkpoint "
            f"{text.vocab_size}: is it the right language model?"
        )
    text.pad_token_id = tokenizer.pad_token_id
    sources = [
        {"name": b.name, "kind": b.kind, "folder": encoders[b.name], **config.entry(number)}
        for number, b in enumerate(config.backbones)
    ]
    fields = {**config.fields(), "template": template, **_query(tensors["feature_fusion"])}
    if len(names) == 1 or config.fusion != "mha_compat":
        fields.pop("fusion_query", None)
    model = LlavaForConditionalGeneration.from_encoders(sources, text, dtype=dtype, **fields)
    _fill_projectors(model.projector.encoders, names, config.projector, tensors["projectors"])
    _fill_fusion(model.projector.fusion, names, tensors["feature_fusion"])
    own = {name: f"{LM}{name}" for name in model.language_model.state_dict()}
    stored = {n: t for n, t in tensors["llm_backbone"].items() if not n.endswith(_BUFFER)}
    fill(model.language_model, stored, own, "llm_backbone")
    return model, tokenizer


def _rows(language_model: Tensors, folder: Path) -> int:
    """Tokens of the language model: MERV adds some, and fills up to a multiple of 64."""
    for name, tensor in language_model.items():
        if name.endswith("embed_tokens.weight"):
            return len(tensor)
    raise ValueError(f"{folder}: llm_backbone lacks the embedding {LM}model.embed_tokens.weight")


def _query(fusion: Tensors) -> dict[str, int]:
    return {"fusion_query": fusion["Q"].numel()} if "Q" in fusion else {}


def _fill_projectors(
    projectors: nn.ModuleDict, names: list[str], projector: str, tensors: Tensors
) -> None:
    stated = {
        f"{name}.{own}": f"{number}.{projector_name(own, projector)}"
        for number, name in enumerate(names)
        for own in projectors[name].state_dict()
    }
    fill(projectors, tensors, stated, "projectors")


@torch.no_grad()
def _fill_fusion(fusion: Fusion, names: list[str], tensors: Tensors) -> None:
    """Fills the fusion; that of a single encoder, which MERV stores as well, does nothing."""
    if fusion.kind == "mha_compat":
        given = dict(tensors)
        query = given.pop("Q", None)
        inner = {n: t for n, t in given.items() if n.startswith("attention.")}
        if query is None or given.keys() - inner.keys():
            raise ValueError(
                f"feature_fusion has the tensors {sorted(tensors)}: there have to be Q and those "
                "of attention"
            )
        score = fusion.attention
        if score is None:
            score = QueryScore(fusion.width, query.numel()).to(query.dtype)
        attention = {n.removeprefix("attention."): t for n, t in inner.items()}
        try:
            score.load_multihead(attention, query)
        except ValueError as error:
            raise ValueError(f"feature_fusion: {error}") from error
        return
    if fusion.kind not in CHANNELS or fusion.channels is None:
        fill(nn.Module(), tensors, {}, "feature_fusion")
        return
    normed = fusion.channels.gain is not None
    stem = "1.projector" if normed else "projector"
    whole = _Channels(fusion, normed)
    stated = {"weight": f"{stem}.weight", "bias": f"{stem}.bias"}
    if normed:
        stated |= {"gain": "0.weight", "shift": "0.bias"}
    fill(whole, tensors, stated, "feature_fusion")
    channels = fusion.channels
    channels.bias.copy_(whole.bias)
    for part in ("weight", "gain", "shift")[: 3 if normed else 1]:
        for name, block in zip(names, getattr(whole, part).chunk(len(names), -1), strict=True):
            getattr(channels, part)[name].copy_(block)


class _Channels(nn.Module):
    """The channel map in one piece, as MERV stores it."""

    def __init__(self, fusion: Fusion, normed: bool) -> None:
        super().__init__()
        size = len(fusion.names) * fusion.width
        self.weight = nn.Parameter(torch.empty(fusion.width, size))
        self.bias = nn.Parameter(torch.empty(fusion.width))
        if normed:
            self.gain = nn.Parameter(torch.empty(size))
            self.shift = nn.Parameter(torch.empty(size))


def main(argv: list[str]) -> int:
    """The verb `llava import`."""
    parser = argparse.ArgumentParser(
        prog="codecvit llava import",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("merv",), help="whose checkpoint it is")
    parser.add_argument("dir", type=Path, help="config.json, checkpoints/latest-checkpoint.pt")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument(
        "--encoder",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="an encoder's weights; repeat it for each",
    )
    parser.add_argument("--lm", required=True, help="folder or hub name: configuration, tokenizer")
    parser.add_argument("--template", choices=sorted(OURS), help="of conversations")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="(%(default)s)")
    args = parser.parse_args(argv)
    try:
        if args.out.exists():
            raise ValueError(f"--out {args.out} exists: name a folder that does not")
        model, tokenizer = import_merv(
            args.dir, _folders(args.encoder), args.lm, args.template, getattr(torch, args.dtype)
        )
        temporary = args.out.with_name(f"{args.out.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary, max_shard_size="5GB")
        tokenizer.save_pretrained(temporary)
        temporary.rename(args.out)
    except (ValueError, OSError) as error:
        print(f"codecvit llava import: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {_told(model.config)}")
    return 0


def _folders(given: list[str]) -> dict[str, str]:
    folders = {}
    for text in given:
        name, _, folder = text.partition("=")
        if not name or not folder or name in folders:
            raise ValueError(f"--encoder {text} must be NAME=FOLDER, each name once")
        folders[name] = folder
    return folders


def _told(config: Any) -> str:
    encoders = ", ".join(f"{entry.name} ({entry.frames} frames)" for entry in config.encoders)
    return f"{encoders}; {config.projector} to {config.pool}; template {config.template}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
