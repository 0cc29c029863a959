#!/usr/bin/env bash
# How far can visual tokens be pooled? Trains and asks one model per pool level, and draws accuracy against visual tokens.
#
#   ENCODER=exports/L CAPTIONS=blip.json DATA=recipe.yaml BENCHMARK=eval_data/NExT-QA ASSETS=nextqa bash scripts/llava/pool_sweep.sh
#   DRY_RUN=1 ...     check, print everything, launch nothing
#
# What:
#   LEVELS          pool levels (1 2 4 8 16): a frame of n x m patches becomes max(1, round(n/p)) x max(1, round(m/p)) tokens
#   ENCODER, LM     as for pretrain_projector.sh
#   CAPTIONS, CAPTIONS_ROOT     data of the projector stage;  DATA, ROOT: of instruction tuning
#   TUNING          sft or lora (sft): the script of the second stage
#   PROJECTOR       linear, mlp2x_gelu, 3davg+mlp2x_gelu, ... (mlp2x_gelu)
#   MAX_LENGTH      most tokens of a row (8192); a level whose visual tokens leave no room is refused before anything is trained
#   BENCHMARK       questions;  ASSETS: its mosaics; without them videos are packed as EVAL_FLAGS say ("--num-frames 16 --size 224")
#   OUT             OUT/level-P/{projector,tuned,results}, OUT/pool_sweep.{json,png} (runs/llava/pool_sweep); run again, it goes on
#   CAPTION_FLAGS, TUNING_FLAGS    more flags of the two stages, such as "--config.data.mosaics='--size 224 --patch 14'"
#   CAPTION_BATCH, TUNING_BATCH, CAPTION_STEPS, TUNING_STEPS    rows of a step (256, 128), steps (0: one pass)
# Where: GPUS, NODES, ...: the head of launch.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
LEVELS=${LEVELS:-1 2 4 8 16} LM=${LM:-Qwen/Qwen3-4B-Instruct-2507} TUNING=${TUNING:-sft} PROJECTOR=${PROJECTOR:-mlp2x_gelu}
MAX_LENGTH=${MAX_LENGTH:-8192} OUT=${OUT:-runs/llava/pool_sweep} DRY_RUN=${DRY_RUN:-0} EVAL_FLAGS=${EVAL_FLAGS:-}
ENCODER=${ENCODER:-} CAPTIONS=${CAPTIONS:-} DATA=${DATA:-} BENCHMARK=${BENCHMARK:-} ASSETS=${ASSETS:-}
CAPTION_FLAGS=${CAPTION_FLAGS:-} TUNING_FLAGS=${TUNING_FLAGS:-} CAPTIONS_ROOT=${CAPTIONS_ROOT:-} ROOT=${ROOT:-}
CAPTION_BATCH=${CAPTION_BATCH:-256} TUNING_BATCH=${TUNING_BATCH:-128} CAPTION_STEPS=${CAPTION_STEPS:-0} TUNING_STEPS=${TUNING_STEPS:-0}

fail() { echo "pool_sweep.sh: $*" >&2; exit 2; }
for name in ENCODER CAPTIONS DATA BENCHMARK; do
  [[ -n ${!name} ]] || fail "$name is not set (the head of this file says what it is)"
done
[[ -d $BENCHMARK ]] || fail "BENCHMARK=$BENCHMARK is no folder"
case $TUNING in sft | lora) ;; *) fail "TUNING=$TUNING must be sft or lora" ;; esac
read -ra levels <<< "$LEVELS"
((${#levels[@]} > 0)) || fail "LEVELS is empty"
for level in "${levels[@]}"; do
  [[ $level =~ ^[1-9][0-9]*$ ]] || fail "LEVELS=$LEVELS: '$level' must be a positive whole number"
done
script=scripts/llava/$([[ $TUNING == lora ]] && echo sft_lora.sh || echo sft.sh)
# Words of these variables are flags; quotes in them are kept together, nothing else is interpreted.
mapfile -t caption_flags < <(xargs -n1 printf '%s\n' <<< "$CAPTION_FLAGS")
mapfile -t tuning_flags < <(xargs -n1 printf '%s\n' <<< "$TUNING_FLAGS")
mapfile -t eval_flags < <(xargs -n1 printf '%s\n' <<< "$EVAL_FLAGS")
[[ -n $CAPTION_FLAGS ]] || caption_flags=()
[[ -n $TUNING_FLAGS ]] || tuning_flags=()
[[ -n $EVAL_FLAGS ]] || eval_flags=()

run() { # run COMMAND...: prints it and, without DRY_RUN, runs it
  printf '$'
  printf ' %q' "$@"
  echo
  [[ $DRY_RUN == 1 ]] || "$@"
}

# --- Every level has to fit before the first one is trained --------------------------------------------------------------
for level in "${levels[@]}"; do
  run codecvit llava train --dry-run "--config=src/configs/llava.py:stage=sft,encoder=$ENCODER,lm=$LM,data=$DATA,root=$ROOT" \
    "--workdir=$OUT/level-$level/check" "--config.model.pool_level=$level" "--config.model.projector=$PROJECTOR" \
    "--config.data.max_length=$MAX_LENGTH" "${tuning_flags[@]}" ||
    fail "level $level was refused (above); leave it out of LEVELS, or raise MAX_LENGTH"
done

# --- Train and ask -------------------------------------------------------------------------------------------------------
pairs=()
for level in "${levels[@]}"; do
  folder=$OUT/level-$level
  echo "pool level $level"
  run env "ENCODER=$ENCODER" "LM=$LM" "DATA=$CAPTIONS" "ROOT=$CAPTIONS_ROOT" "WORKDIR=$folder/projector" "BATCH=$CAPTION_BATCH" "STEPS=$CAPTION_STEPS" \
    bash scripts/llava/pretrain_projector.sh "--config.model.pool_level=$level" "--config.model.projector=$PROJECTOR" \
    "--config.data.max_length=$MAX_LENGTH" "${caption_flags[@]}"
  run env "INIT=$folder/projector" "DATA=$DATA" "ROOT=$ROOT" "WORKDIR=$folder/tuned" "BATCH=$TUNING_BATCH" "STEPS=$TUNING_STEPS" \
    bash "$script" "--config.data.max_length=$MAX_LENGTH" "${tuning_flags[@]}"
  if [[ -n $ASSETS ]]; then seen=(--assets "$ASSETS"); else seen=(--on-miss pack); fi
  run codecvit llava eval --model "$folder/tuned/model" --benchmark "$BENCHMARK" "${seen[@]}" "${eval_flags[@]}" --out "$folder/results"
  pairs+=("$level=$folder/results")
done
run codecvit llava pool-sweep "${pairs[@]}" --out "$OUT"
