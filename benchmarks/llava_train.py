"""Training of a LLaVA model: this project's loop beside transformers.Trainer, in one run.

    python benchmarks/llava_train.py                                   # tiny, minutes on a CPU
    python benchmarks/llava_train.py --encoder exports/L --lm Qwen/Qwen3-4B-Instruct-2507 \\
        --data recipe.yaml --batch 16 --steps 100                      # real parts, on a GPU

Both train the same model on the same rows, one pass, with the same batch size, optimiser and
precision, from the same folders: rows in the order of each (ours groups by length and kind, the
Trainer shuffles), the same code reads and pads them. The two take turns, --repeats times; the
table has medians. Without --encoder everything is made: an encoder and a Qwen2 of a million
parameters, images of native size, from 16 to 400 patches, and texts of many lengths. Saving is left
out of both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", help="exported encoder; default: a made one")
    parser.add_argument("--lm", help="language model; default: a made one")
    parser.add_argument("--data", help="recipe, JSON or JSONL; default: made rows")
    parser.add_argument("--rows", type=int, default=96, help="of the made data")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=0, help="0: one pass")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stage", default="sft", choices=("projector", "sft", "lora"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if args.encoder is None:
            args.encoder, args.lm = make_parts(folder)
        args.data = args.data or make_rows(folder / "data", args.rows)
        config = make_config(args)
        found = {"this loop": [], "transformers.Trainer": []}
        for repeat in range(args.repeats + 1):
            for name, measure in (("this loop", ours), ("transformers.Trainer", theirs)):
                rates = measure(config, folder / "run")
                if repeat:  # the first round warms caches
                    found[name].append(rates)
    report(found)


def make_config(args):
    from codecvit.configs.llava import get_config
    from codecvit.llava.training.config import parse_config

    given = get_config(f"stage={args.stage},encoder={args.encoder},lm={args.lm},data={args.data}")
    given.model.template = "chatml"
    given.update(batch_size=args.batch, micro_batch_size=args.batch, steps=args.steps)
    given.update(gradient_checkpointing=False, log_steps=10**9)
    given.checkpoint.every_steps = 10**9
    given.data.workers = 0
    return parse_config(given.to_dict())


class Clock:
    """Wall and processor time of a piece of a run."""

    def __enter__(self):
        self.start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_):
        self.wall = time.perf_counter() - self.start[0]
        self.processor = time.process_time() - self.start[1]


def ours(config, workdir):
    """(samples, visual tokens, clock) of the loop alone: neither loading nor the finished model."""
    from codecvit.llava.training import loop
    from codecvit.llava.training import train as run

    shutil.rmtree(workdir, ignore_errors=True)
    clock, counted = Clock(), []

    class TimedLoop(loop.Loop):
        def run(self, *arguments):
            with clock:
                return super().run(*arguments)

        def _save(self, step):
            pass

        def _step(self, number, batches, counts):
            counted.append(counts)
            return super()._step(number, batches, counts)

    replaced = {"Loop": TimedLoop, "finish_run": lambda workdir: workdir}
    before = {name: getattr(run, name) for name in replaced}
    vars(run).update(replaced)
    try:
        run.train(config, workdir)
    finally:
        vars(run).update(before)
    return sum(c.seen for c in counted), sum(c.visual for c in counted), clock


def theirs(config, workdir):
    """The same of transformers.Trainer with its defaults: shuffled rows, padded as they come."""
    from transformers import Trainer, TrainingArguments

    from codecvit.llava.data.dataset import Collator
    from codecvit.llava.model.config import VISUAL_TOKEN
    from codecvit.llava.training.data import TrainingData
    from codecvit.llava.training.start import prepare_training, start_model, start_tokenizer

    shutil.rmtree(workdir, ignore_errors=True)
    model, tokenizer = start_model(config), start_tokenizer(config)
    prepare_training(model, config)
    dataset = TrainingData(config, tokenizer, model.config)._loader.dataset
    collator, counts = Collator(tokenizer.pad_token_id), [0, 0]

    def collate(rows):
        inputs = collator(rows).inputs
        counts[0] += len(rows)
        counts[1] += int((inputs["input_ids"] == VISUAL_TOKEN).sum())
        return {name: x for name, x in inputs.items() if x is not None}

    arguments = TrainingArguments(
        output_dir=str(workdir),
        per_device_train_batch_size=config.batch_size,
        num_train_epochs=config.epochs,
        max_steps=config.steps or -1,
        learning_rate=config.optim.lr,
        lr_scheduler_type=config.optim.schedule,
        max_grad_norm=config.optim.clip_norm,
        bf16=torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
    )
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=dataset)
    with Clock() as clock:
        trainer.train()
    return *counts, clock


def report(found):
    print("| loop | samples/s | visual tokens/s | samples per second of processor time |")
    print("|---|---|---|---|")
    medians = {}
    for name, runs in found.items():
        rates = [(n / c.wall, v / c.wall, n / c.processor) for n, v, c in runs]
        medians[name] = [statistics.median(values) for values in zip(*rates, strict=True)]
        print("| {} | {:.2f} | {:,.0f} | {:.2f} |".format(name, *medians[name]))
    ratios = [a / b for a, b in zip(*medians.values(), strict=True)]
    print("| ratio | **{:.2f}** | **{:.2f}** | {:.2f} |".format(*ratios))
    each = [(a[0] / a[2].wall) / (b[0] / b[2].wall) for a, b in zip(*found.values(), strict=True)]
    print("samples/s, round by round: " + ", ".join(f"{ratio:.2f}" for ratio in each))


def make_parts(folder):
    """A freshly drawn encoder and Qwen2 with a tokenizer of bytes; the numbers don't matter."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    from codecvit.convert.hf.configuration_onevision_encoder import OneVisionEncoderConfig
    from codecvit.convert.hf.modeling_onevision_encoder import OneVisionEncoderModel

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
    encoder = OneVisionEncoderConfig(hidden_size=64, intermediate_size=256, **sizes)
    OneVisionEncoderModel(encoder).save_pretrained(folder / "encoder")
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"bos_token_id": None, "eos_token_id": 258, "pad_token_id": 256, "vocab_size": 300}
    text = Qwen2Config(hidden_size=128, intermediate_size=512, **sizes, **ids)
    AutoModelForCausalLM.from_config(text).save_pretrained(folder / "lm")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder / "lm")
    return str(folder / "encoder"), str(folder / "lm")


def make_rows(folder, rows):
    """Two thirds images of many sizes, one third text; lengths as unequal as those of real data."""
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(rows):
        words = " ".join(["word"] * int(rng.integers(1, 40)))
        row = {"id": str(number)}
        if number % 3:
            height, width = (14 * int(side) for side in rng.integers(4, 21, 2))
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            row["image"] = f"images/{number}.png"
            row["width"], row["height"] = width, height
            Image.fromarray(pixels).save(folder / row["image"])
        question = ("<image>\n" if "image" in row else "") + "What is there?"
        talk = [{"from": "human", "value": question}, {"from": "gpt", "value": words}]
        lines.append(json.dumps({**row, "conversations": talk}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return str(folder / "rows.jsonl")


if __name__ == "__main__":
    main()
