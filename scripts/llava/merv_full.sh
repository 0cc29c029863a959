#!/usr/bin/env bash
# MERV in full: captions at 1e-4 (256 rows a step), then instructions at 2e-5 (128 rows, weight decay 0.1). Both train projectors, fusion
# and language model on frozen encoders, one pass, cosine, warm-up 0.03 (src/configs/llava_presets.py). The second stage starts with all
# that the first has trained.
#
#   CAPTIONS=valley_llavaimage.json DATA=videochatgpt_llavaimage_tune.json ROOT=data/download/videollava bash scripts/llava/merv_full.sh
#   DRY_RUN=1 ...     check, print everything, launch nothing
#
# What:
#   STAGE           all, captions or instructions (all: one after the other)
#   TOWERS          folders of the encoders, NAME=FOLDER;NAME=FOLDER; the others come from the hub under their published names
#   LM              language model, folder or hub name (meta-llama/Llama-2-7b-hf, for which the hub wants a licence to be accepted)
#   CAPTIONS, DATA  JSON of rows, or a recipe, of the two stages;  ROOT: what their files are relative to (each file's folder)
#   WORKDIR         folder of the runs WORKDIR/captions and WORKDIR/instructions (runs/llava/merv-full); run again, they go on where
#                   they stopped
#   MICRO_CAPTIONS, MICRO    rows of a process at once (16, 8);  EPOCHS (1), STEPS (0: by EPOCHS), SEED (7, MERV's)
# Where: GPUS, NODES, ...: the head of launch.sh; FSDP is 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
STAGE=${STAGE:-all} TOWERS=${TOWERS:-} LM=${LM:-meta-llama/Llama-2-7b-hf} CAPTIONS=${CAPTIONS:-} DATA=${DATA:-} ROOT=${ROOT:-}
RUNS=${WORKDIR:-runs/llava/merv-full} INSTRUCTIONS=$DATA MICRO_CAPTIONS=${MICRO_CAPTIONS:-16} MICRO_INSTRUCTIONS=${MICRO:-8}
SEED=${SEED:-7} FSDP=${FSDP:-1} LM_LAYER=${LM_LAYER:-LlamaDecoderLayer} ENCODER_LAYER=${ENCODER_LAYER:-}
source scripts/llava/launch.sh

[[ $STAGE == all || $STAGE == captions || $STAGE == instructions ]] || fail "STAGE=$STAGE must be all, captions or instructions"
if [[ $STAGE != instructions ]]; then
  DATA=$CAPTIONS WORKDIR=$RUNS/captions BATCH=256 MICRO=$MICRO_CAPTIONS
  check LM CAPTIONS WORKDIR
fi
if [[ $STAGE != captions ]]; then
  DATA=$INSTRUCTIONS WORKDIR=$RUNS/instructions BATCH=128 MICRO=$MICRO_INSTRUCTIONS
  check DATA WORKDIR
fi

if [[ $STAGE != instructions ]]; then
  DATA=$CAPTIONS WORKDIR=$RUNS/captions BATCH=256 MICRO=$MICRO_CAPTIONS
  echo "captions, merv-full"
  show TOWERS LM DATA ROOT
  launch projector "preset=merv-full,towers=$TOWERS,lm=$LM,data=$DATA,root=$ROOT" "$@"
fi
if [[ $STAGE != captions ]]; then
  DATA=$INSTRUCTIONS WORKDIR=$RUNS/instructions BATCH=128 MICRO=$MICRO_INSTRUCTIONS INIT=$RUNS/captions
  echo "instructions, merv-full"
  show INIT DATA ROOT
  launch sft "preset=merv-full,init=$INIT,data=$DATA,root=$ROOT" "$@"
fi
