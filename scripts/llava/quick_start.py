"""Asks a model about a video: the calls of MERV's quick start, by another import.

    python scripts/llava/quick_start.py MODEL VIDEO ["question"]

MODEL: a folder of a model, owner/name on the Hugging Face hub, or a published id such as merv-full,
which says what to download and to import where its folder is not there.
"""

from __future__ import annotations

import sys

import torch

from codecvit.llava import load_vid


def main(model: str, video: str, question: str = "What happens in this video?") -> None:
    """Prints the answer."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vidlm, _ = load_vid(model, get_model_cfg=True)
    vidlm.to(device, dtype=torch.bfloat16)

    builder = vidlm.get_prompt_builder()
    builder.add_turn(role="human", message=question)

    answer = vidlm.generate(
        video,
        builder.get_prompt(),
        num_frames=vidlm.num_frames,  # [16, 16, 32, 16] of merv-full
        do_sample=True,
        temperature=0.4,
        max_new_tokens=512,
        min_length=1,
    )
    print(answer)


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"quick_start.py: {error}")
