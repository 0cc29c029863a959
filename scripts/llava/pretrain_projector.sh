#!/usr/bin/env bash
# Stage 1: the projector learns from 558k captions, encoder and language model frozen. Published recipe: rate 1e-3, cosine, warm-up
# 0.03, 256 rows a step, one pass, captions without prompt (src/configs/llava.py, stage=projector).
#
#   ENCODER=exports/L DATA=blip_laion_cc_sbu_558k.json bash scripts/llava/pretrain_projector.sh [--config.FIELD=VALUE ...]
#   DRY_RUN=1 ...     check, print everything, launch nothing
#
# What:
#   ENCODER         folder of `codecvit export`
#   LM              language model, folder or hub name (Qwen/Qwen3-4B-Instruct-2507)
#   DATA            JSON or JSONL of captions, or a recipe;  ROOT: what its images are relative to (the file's folder)
#   WORKDIR         folder of the run (runs/llava/projector); run again, it goes on where it stopped
#   INIT_PROJECTOR  weights to begin with (none)
#   BATCH, MICRO    rows of a step (256), and of a process at once (16);  EPOCHS (1), STEPS (0: by EPOCHS), SEED (0)
# Where: GPUS, NODES, ...: the head of launch.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
LM=${LM:-Qwen/Qwen3-4B-Instruct-2507} WORKDIR=${WORKDIR:-runs/llava/projector} ROOT=${ROOT:-} INIT_PROJECTOR=${INIT_PROJECTOR:-}
BATCH=${BATCH:-256} MICRO=${MICRO:-16} ENCODER=${ENCODER:-} DATA=${DATA:-}
source scripts/llava/launch.sh

check ENCODER LM DATA WORKDIR
echo "projector stage"
show ENCODER LM DATA ROOT INIT_PROJECTOR
[[ -z $INIT_PROJECTOR ]] || set -- "--init-projector=$INIT_PROJECTOR" "$@"
launch projector "encoder=$ENCODER,lm=$LM,data=$DATA,root=$ROOT" "$@"
