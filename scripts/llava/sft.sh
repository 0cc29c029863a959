#!/usr/bin/env bash
# Stage 2: instruction tuning of encoder, projector and language model on codec videos, frames and images. Published recipe: rate 1e-5,
# the encoder's 2e-6, linear without warm-up, 128 rows a step, one pass (src/configs/llava.py, stage=sft).
#
#   INIT=runs/llava/projector DATA=recipe.yaml bash scripts/llava/sft.sh [--config.FIELD=VALUE ...]
#   DRY_RUN=1 ...     check, print everything, launch nothing
#
# What:
#   INIT            the finished projector stage, or any earlier run or model
#   DATA            recipe of data sets (docs/llava_data.md);  ROOT: what its paths are relative to (the recipe's folder)
#   WORKDIR         folder of the run (runs/llava/sft); run again, it goes on where it stopped
#   BATCH, MICRO    rows of a step (128), and of a process at once (1);  EPOCHS (1), STEPS (0: by EPOCHS), SEED (0)
# Where: GPUS, NODES, ...: the head of launch.sh. FSDP is 1 here, as weights and moments of 4 billion parameters take 64 GB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
WORKDIR=${WORKDIR:-runs/llava/sft} ROOT=${ROOT:-} BATCH=${BATCH:-128} MICRO=${MICRO:-1} INIT=${INIT:-} DATA=${DATA:-} FSDP=${FSDP:-1}
source scripts/llava/launch.sh

check INIT DATA WORKDIR
echo "instruction tuning"
show INIT DATA ROOT
# A row of eight mosaics is 10,368 visual tokens; an answer, and several images at times, come to it.
launch sft "init=$INIT,data=$DATA,root=$ROOT" --config.data.max_length=32768 "$@"
