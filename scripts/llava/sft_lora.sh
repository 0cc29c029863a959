#!/usr/bin/env bash
# Stage 2 by LoRA: the language model learns through an adapter (rank 128, alpha 256, rate 2e-4), the projector at 2e-5, the encoder is
# frozen; cosine, warm-up 0.03, 128 rows a step, one pass, as LLaVA-1.5 (src/configs/llava.py, stage=lora). The run ends with the merged
# model in WORKDIR/model and the adapter in WORKDIR/adapter.
#
#   INIT=runs/llava/projector DATA=recipe.yaml bash scripts/llava/sft_lora.sh [--config.FIELD=VALUE ...]
#   DRY_RUN=1 ...     check, print everything, launch nothing
#
# What:
#   INIT            the finished projector stage, or any earlier run or model
#   DATA            recipe of data sets (docs/llava_data.md);  ROOT: what its paths are relative to (the recipe's folder)
#   WORKDIR         folder of the run (runs/llava/sft_lora); run again, it goes on where it stopped
#   BATCH, MICRO    rows of a step (128), and of a process at once (1);  EPOCHS (1), STEPS (0: by EPOCHS), SEED (0)
# Where: GPUS, NODES, ...: the head of launch.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
WORKDIR=${WORKDIR:-runs/llava/sft_lora} ROOT=${ROOT:-} BATCH=${BATCH:-128} MICRO=${MICRO:-1} INIT=${INIT:-} DATA=${DATA:-}
source scripts/llava/launch.sh

check INIT DATA WORKDIR
echo "instruction tuning by LoRA"
show INIT DATA ROOT
# A row of eight mosaics is 10,368 visual tokens; an answer, and several images at times, come to it.
launch lora "init=$INIT,data=$DATA,root=$ROOT" --config.data.max_length=32768 "$@"
