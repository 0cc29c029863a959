"""The pairs of an image-text run as loaders, and the work of its steps."""

from __future__ import annotations

from typing import Any

import jax

from ..data.pairs import make_pair_loader, open_pairs
from ..data.tokenizers import Tokenizer
from .contrastive_config import ContrastiveConfig, source_budget
from .flops import head_flops_per_sample, train_flops_per_token
from .mesh import batch_part
from .sources import Phase, Sources, source_seeds


def open_sources(config: ContrastiveConfig, tokenizer: Tokenizer) -> Sources:
    """The data of a run. A mesh must be set.

    Raises:
      ValueError: pairs can't be opened, or a batch or budget doesn't fit.
    """
    mesh = jax.sharding.get_mesh()
    devices, (part, parts) = mesh.size, batch_part(mesh)
    opened, seeds = {}, source_seeds(config.seed, config.sources)
    for name, source in config.sources.items():
        if source.batch_size % devices:
            raise ValueError(
                f"config.sources.{name}.batch_size = {source.batch_size} must be a multiple of the "
                f"{devices} devices"
            )
        loader = make_pair_loader(
            [
                open_pairs(spec, preset=source.preset, columns=source.columns)
                for spec in source.pairs.split("+")
            ],
            tokenizer,
            config.text,
            weights=source.mix_weights or None,
            batch_size=source.batch_size,
            budget=source_budget(config, name),
            patch=config.model.vision.patch,
            image_size=source.image_size,
            augment=source.augment,
            mask_ratio=source.mask_ratio,
            seed=seeds[name],
            process_index=part,
            process_count=parts,
            worker_count=source.loader_workers,
        )
        opened[name] = {"": Phase(0, loader)}
    return Sources(opened)


def require_vocabulary(config: ContrastiveConfig, tokenizer: Tokenizer) -> None:
    """Compares the tokenizer and the lengths of texts with what the towers are made for.

    Raises:
      ValueError: an id or a position would lie outside of a tower's tables.
    """
    towers = {"text": config.model.text, "decoder": config.model.decoder}
    for name, tower in towers.items():
        if tower is not None and tokenizer.vocab_size > tower.vocab_size:
            raise ValueError(
                f"{config.tokenizer} has {tokenizer.vocab_size} entries, over "
                f"config.model.{name}.vocab_size = {tower.vocab_size}"
            )
    lengths = {
        "text.token_len": (config.model.text, "context_length", config.text.token_len),
        "text.output_token_len": (
            config.model.decoder,
            "output_length",
            config.text.output_token_len,
        ),
    }
    for field, (tower, attribute, value) in lengths.items():
        if tower is not None and getattr(tower, attribute) != value:
            raise ValueError(
                f"config.{field} = {value}, but the tower's {attribute} = "
                f"{getattr(tower, attribute)}: set them to the same"
            )


def step_work(config: ContrastiveConfig) -> dict[str, Any]:
    """Pairs, image tokens (padding included) and analytic FLOPs of one step over all devices.

    FLOPs are those of the towers' blocks, the decoder's vocabulary and, of the loss, the products
    of all images with all texts.

    Returns:
      `samples`, `tokens`, `flops`, and `source_tokens` with the image tokens of each source.
    """
    model, samples, flops, tokens = config.model, 0, 0.0, {}
    for name, source in config.sources.items():
        length = source_budget(config, name)
        samples += source.batch_size
        tokens[name] = source.batch_size * length
        pair = length * train_flops_per_token(model.vision, length)
        if model.text is not None:
            T = model.text.context_length
            pair += 2 * T * train_flops_per_token(model.text, T)  # two texts
            pair += 2 * head_flops_per_sample(model.embed_dim, source.batch_size)
        if model.decoder is not None:
            outputs = model.decoder.output_length
            prefix = round(length * config.captioning.keep_ratio)
            prefix += 0 if model.text is None else model.text.context_length - 1
            pair += (prefix + outputs) * train_flops_per_token(model.decoder, prefix + outputs)
            pair += outputs * head_flops_per_sample(model.decoder.width, model.decoder.vocab_size)
        flops += source.batch_size * pair
    total = sum(tokens.values())
    return {"samples": samples, "tokens": total, "flops": flops, "source_tokens": tokens}
