#!/usr/bin/env bash
# MERV, the one stage of merv-frozen and of the single-encoder models: instructions at once. Projectors, fusion and language model learn
# at 2e-5, the encoders are frozen; weight decay 0.1, cosine, warm-up 0.03, 128 rows a step, one pass (src/configs/llava_presets.py).
#
#   DATA=videochatgpt_llavaimage_tune.json ROOT=data/download/videollava bash scripts/llava/merv_frozen.sh [--config.FIELD=VALUE ...]
#   DRY_RUN=1 ...     check, print everything, launch nothing
#
# What:
#   PRESET          merv-frozen, languagebind-single, dinov2-single, vivit-single or siglip-single (merv-frozen)
#   TOWERS          folders of the encoders, NAME=FOLDER;NAME=FOLDER; the others come from the hub under their published names
#   LM              language model, folder or hub name (meta-llama/Llama-2-7b-hf, for which the hub wants a licence to be accepted)
#   DATA            JSON of rows, or a recipe;  ROOT: what its files are relative to (the file's folder)
#   WORKDIR         folder of the run (runs/llava/PRESET); run again, it goes on where it stopped
#   BATCH, MICRO    rows of a step (128), and of a process at once (8);  EPOCHS (1), STEPS (0: by EPOCHS), SEED (7, MERV's)
# Where: GPUS, NODES, ...: the head of launch.sh; FSDP is 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PRESET=${PRESET:-merv-frozen} TOWERS=${TOWERS:-} LM=${LM:-meta-llama/Llama-2-7b-hf} DATA=${DATA:-} ROOT=${ROOT:-}
WORKDIR=${WORKDIR:-runs/llava/$PRESET} BATCH=${BATCH:-128} MICRO=${MICRO:-8} SEED=${SEED:-7}
FSDP=${FSDP:-1} LM_LAYER=${LM_LAYER:-LlamaDecoderLayer} ENCODER_LAYER=${ENCODER_LAYER:-}
source scripts/llava/launch.sh

case $PRESET in
  merv-frozen | languagebind-single | dinov2-single | vivit-single | siglip-single) ;;
  *) fail "PRESET=$PRESET must be merv-frozen or one of {languagebind,dinov2,vivit,siglip}-single" ;;
esac
check LM DATA WORKDIR
echo "instructions, $PRESET"
show PRESET TOWERS LM DATA ROOT
launch sft "preset=$PRESET,towers=$TOWERS,lm=$LM,data=$DATA,root=$ROOT" "$@"
