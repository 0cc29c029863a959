#!/usr/bin/env bash
# VideoGPT+: the image projector and the video projector learn from captions, each by itself (1e-3, 256 rows a step, no pooling); then
# the language model by LoRA (rank 128, alpha 256, 2e-4) and both projectors (2e-5), 128 rows a step, on the tokens of both encoders one
# after the other. Encoders are frozen; one pass each, cosine, warm-up 0.03 (src/configs/llava_presets.py).
#
#   VIDEO=InternVideo2-stage2_1b-224p-f4.pt CAPTIONS=captions.yaml DATA=recipe.yaml bash scripts/llava/videogpt_plus.sh
#   DRY_RUN=1 ...     check, print everything, launch nothing
#
# What:
#   STAGE           all, image, video or lora (all: one after the other)
#   IMAGE, VIDEO    weights of the encoders: folder or hub name of a CLIP (openai/clip-vit-large-patch14-336), InternVideo2's file
#   LM              language model, folder or hub name (microsoft/Phi-3-mini-4k-instruct)
#   CAPTIONS, DATA  recipe, or JSON of rows, of the projectors' stages and of the last;  ROOT: what their files are relative to
#   INIT_PROJECTOR  projectors that the last stage begins with, image=FILE,video=FILE: files, or folders of runs (the two stages before)
#   POOL_LEVEL      side of a cell of tokens that become one, in the last stage (2: 3,328 tokens of a video; 1 needs a context of 16k)
#   WORKDIR         folder of the runs WORKDIR/image, WORKDIR/video and WORKDIR/lora (runs/llava/videogpt-plus); run again, they go on
#                   where they stopped
#   MICRO_CAPTIONS, MICRO    rows of a process at once (16, 8);  EPOCHS (1), STEPS (0: by EPOCHS), SEED (0)
# Where: GPUS, NODES, ...: the head of launch.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
STAGE=${STAGE:-all} IMAGE=${IMAGE:-openai/clip-vit-large-patch14-336} VIDEO=${VIDEO:-} LM=${LM:-microsoft/Phi-3-mini-4k-instruct}
CAPTIONS=${CAPTIONS:-} DATA=${DATA:-} ROOT=${ROOT:-} POOL_LEVEL=${POOL_LEVEL:-2} RUNS=${WORKDIR:-runs/llava/videogpt-plus}
INIT_PROJECTOR=${INIT_PROJECTOR:-} INSTRUCTIONS=$DATA MICRO_CAPTIONS=${MICRO_CAPTIONS:-16} MICRO_LORA=${MICRO:-8}
LM_LAYER=${LM_LAYER:-Phi3DecoderLayer} ENCODER_LAYER=${ENCODER_LAYER:-}
source scripts/llava/launch.sh

# captions NAME FLAG...: the stage of one projector.
captions() {
  local name=$1 tower=$2
  shift 2
  DATA=$CAPTIONS WORKDIR=$RUNS/$name
  echo "projector stage, $name encoder"
  show LM CAPTIONS ROOT
  launch projector "preset=videogpt-plus-$name,towers=$name=$tower,lm=$LM,data=$DATA,root=$ROOT" "$@"
}

case $STAGE in all | image | video | lora) ;; *) fail "STAGE=$STAGE must be all, image, video or lora" ;; esac
[[ $STAGE == image || -e $VIDEO ]] || fail "VIDEO=$VIDEO is no file of InternVideo2's weights"
[[ $POOL_LEVEL =~ ^[1-9][0-9]*$ ]] || fail "POOL_LEVEL=$POOL_LEVEL must be a whole number of at least 1"
if [[ $STAGE != lora ]]; then
  DATA=$CAPTIONS WORKDIR=$RUNS BATCH=256 MICRO=$MICRO_CAPTIONS
  check LM CAPTIONS WORKDIR
fi
if [[ $STAGE == all || $STAGE == lora ]]; then
  DATA=$INSTRUCTIONS WORKDIR=$RUNS BATCH=128 MICRO=$MICRO_LORA
  check LM DATA WORKDIR
fi

BATCH=256 MICRO=$MICRO_CAPTIONS
[[ $STAGE != all && $STAGE != image ]] || captions image "$IMAGE" "$@"
[[ $STAGE != all && $STAGE != video ]] || captions video "$VIDEO" "$@"
if [[ $STAGE == all || $STAGE == lora ]]; then
  DATA=$INSTRUCTIONS WORKDIR=$RUNS/lora BATCH=128 MICRO=$MICRO_LORA
  INIT_PROJECTOR=${INIT_PROJECTOR:-image=$RUNS/image,video=$RUNS/video}
  echo "instruction tuning by LoRA, both encoders"
  show LM DATA ROOT INIT_PROJECTOR POOL_LEVEL
  launch lora "preset=videogpt-plus,pool_level=$POOL_LEVEL,towers=image=$IMAGE;video=$VIDEO,lm=$LM,data=$DATA,root=$ROOT" \
    "--init-projector=$INIT_PROJECTOR" "$@"
fi
