"""A training step of a model of 1, 2 and 4 encoders: from frames, and from features that were kept.

    python benchmarks/cached_features.py                         # small, two minutes on a CPU
    python benchmarks/cached_features.py --width 768 --layers 12 --size 224 --device cuda

Encoders as in benchmarks/encoders.py, frozen; projectors (3davg+linear, 16 x 8 x 8 cells), fusion
(score) and a freshly drawn Qwen2 are trained: forward and backward of one row with one video, 1,024
visual tokens whatever the number of encoders. `--lm-width` and `--lm-layers` size the language
model. Measurements take turns; tables have medians, and ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from encoders import FRAMES, timed, tower

VOCABULARY, TEXT = 512, 64


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=192, help="of the encoders")
    parser.add_argument("--layers", type=int, default=4, help="of the encoders")
    parser.add_argument("--size", type=int, default=112, help="side of frames in pixels")
    parser.add_argument("--lm-width", type=int, default=256)
    parser.add_argument("--lm-layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for kind in FRAMES:
            tower(kind, args)[1].save_pretrained(Path(folder, kind))
        cases = {count: Case([*FRAMES][:count], Path(folder), args) for count in (1, 2, 4)}
    rounds = []
    for _ in range(args.repeats + 1):
        found = {}
        for count, case in cases.items():
            found[count, "frames"] = timed(lambda case=case: case.step(case.pixels), args.device)
            found[count, "kept"] = timed(lambda case=case: case.step(case.kept), args.device)
        rounds.append(found)
    report(rounds[1:], cases)


class Case:
    """A model of some encoders and one row for it."""

    def __init__(self, kinds, folder, args):
        from transformers import Qwen2Config

        from codecvit.llava import VISUAL_TOKEN, LlavaForConditionalGeneration
        from codecvit.llava.model.token_counts import num_visual_tokens

        language = Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=args.lm_width,
            intermediate_size=3 * args.lm_width,
            num_hidden_layers=args.lm_layers,
            num_attention_heads=max(1, args.lm_width // 64),
            num_key_value_heads=max(1, args.lm_width // 64),
            max_position_embeddings=4096,
        )
        sources = [f"{kind}={kind}:{folder / kind}@{FRAMES[kind]}" for kind in kinds]
        self.model = LlavaForConditionalGeneration.from_encoders(
            [f"{source}?image_size={args.size}" for source in sources],
            language,
            dtype=getattr(torch, args.dtype),
            resize="squash",
            projector="3davg+linear",
        ).to(args.device)
        self.model.vision_tower.requires_grad_(False)
        config = self.model.config
        count = config.frame_rule.count
        empty = torch.zeros(0, 3, dtype=torch.long).numpy()
        self.tokens = num_visual_tokens(config, empty, (0, 0), count)
        ids = torch.randint(0, VOCABULARY, (1, self.tokens + TEXT))
        ids[0, : self.tokens] = VISUAL_TOKEN
        labels = ids.masked_fill(ids == VISUAL_TOKEN, -100)
        shape = (count, args.size, args.size, 3)
        frames = torch.randint(0, 256, shape, dtype=torch.uint8)
        given = {"frames": frames, "frame_counts": torch.tensor([count])}
        self.row = {"input_ids": ids.to(args.device), "labels": labels.to(args.device)}
        self.pixels = {name: value.to(args.device) for name, value in given.items()}
        with torch.no_grad():
            self.kept = {"visual_features": self.model.encode_visuals(**self.pixels)}

    def step(self, visuals):
        """Forward and backward."""
        self.model.zero_grad(set_to_none=True)
        self.model(**self.row, **visuals).loss.backward()


def report(rounds, cases):
    print("| encoders | frames, s | visual tokens/s | kept features, s | visual tokens/s | ratio |")
    print("|---|---|---|---|---|---|")
    for count, case in cases.items():
        cells = []
        for name in ("frames", "kept"):
            seconds = statistics.median(found[count, name][0] for found in rounds)
            cells.append(f"{seconds:.3f} | {case.tokens / seconds:,.0f}")
        ratios = [found[count, "frames"][1] / found[count, "kept"][1] for found in rounds]
        print(f"| {count} | {cells[0]} | {cells[1]} | {statistics.median(ratios):.2f} |")
    print("Ratios are of processor time.")


if __name__ == "__main__":
    main()
