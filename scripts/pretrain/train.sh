#!/usr/bin/env bash
# Pretraining by cluster discrimination in stages, each from the one before: single images at 224 pixels, at 448, then images, text in
# images and video together (src/configs/stage1_images.py, stage2_video.py). Run again, it goes on where it stopped; a stage that is
# finished costs a minute.
#
#   RECORDS=gs://bucket/records EXP_PATH=gs://bucket/runs VARIANT=L/14 bash scripts/pretrain/train.sh [--config.FIELD=VALUE ...]
#   LOCAL=1 bash scripts/pretrain/train.sh              # here, on made data, in minutes
#   DRY_RUN=1 ... bash scripts/pretrain/train.sh        # print everything, launch nothing
#
# It is one process of a run: alone on this host, or one of those that scripts/pretrain/train_gpu.sh or a TPU pod starts. What stands
# behind it goes to every stage.
# Where: TPU_NAME, ZONE, PROJECT_ID, LOCAL_DATA, LOCAL_DATA_GB and the exit status: the head of scripts/launch_common.sh.
# What:
#   EXP_PATH         folder of the runs that all hosts share, or gs://; below it VARIANT/224, VARIANT/448, VARIANT/video
#   RECORDS          folder or URL of the record sets: image; for the stage `video` also ocr, codec, frames, collage
#   VARIANT          B/14, L/14 (default) or H/14
#   STAGES           of 224,448,video in this order (all; B/14 has no published recipe for video)
#   INIT             run that the first stage starts from, its head included; needed where that is not 224
#   IMAGE_CLASSES, OCR_CLASSES, VIDEO_CLASSES    labels of the record sets (2,000,000, 365,187 and 400,000)
#   FSDP             devices over which parameters and optimiser are sharded (1)
#   ACCUMULATE, VIDEO_ACCUMULATE    pieces that a batch is cut into: of stages 224 and 448 (1), of video (4)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/launch_common.sh

VARIABLES=(EXP_PATH RECORDS VARIANT STAGES INIT IMAGE_CLASSES OCR_CLASSES VIDEO_CLASSES FSDP ACCUMULATE VIDEO_ACCUMULATE)
EXP_PATH=${EXP_PATH:-} RECORDS=${RECORDS:-} VARIANT=${VARIANT:-L/14} STAGES=${STAGES:-} INIT=${INIT:-}
IMAGE_CLASSES=${IMAGE_CLASSES:-2000000} OCR_CLASSES=${OCR_CLASSES:-365187} VIDEO_CLASSES=${VIDEO_CLASSES:-400000}
FSDP=${FSDP:-1} ACCUMULATE=${ACCUMULATE:-1} VIDEO_ACCUMULATE=${VIDEO_ACCUMULATE:-4}

case "$VARIANT" in
  B/14) STAGES=${STAGES:-224,448} ;;
  L/14 | H/14) STAGES=${STAGES:-224,448,video} ;;
  *) fail "VARIANT=$VARIANT must be B/14, L/14 or H/14" ;;
esac
runlocal=""
if [[ $LOCAL == 1 ]]; then
  EXP_PATH=${EXP_PATH:-demo_out/pretrain_runs} RECORDS=${RECORDS:-demo_out/stages} runlocal=",runlocal"
fi

# --- Check ---------------------------------------------------------------------------------------------------------------
check_place
require EXP_PATH RECORDS
case ",$STAGES," in
  ,224, | ,448, | ,video, | ,224,448, | ,448,video, | ,224,448,video,) ;;
  *) fail "STAGES=$STAGES must be neighbours of 224,448,video in this order" ;;
esac
[[ $VARIANT != B/14 || $STAGES != *video* ]] || fail "STAGES=$STAGES: B/14 has no published recipe for video"
[[ $STAGES == 224* || -n $INIT ]] || fail "STAGES=$STAGES needs INIT, the run that its first stage starts from"
whole_numbers IMAGE_CLASSES OCR_CLASSES VIDEO_CLASSES FSDP ACCUMULATE VIDEO_ACCUMULATE
config_arguments EXP_PATH RECORDS INIT
work_folders EXP_PATH INIT

# --- Say what will run ---------------------------------------------------------------------------------------------------
say "pretraining of $VARIANT"
show_place
show "${VARIABLES[@]}"
hand_over scripts/pretrain/train.sh "$@"

# --- Prepare -------------------------------------------------------------------------------------------------------------
if [[ $LOCAL == 1 && $DRY_RUN == 0 ]]; then
  set_up_here
  view=(--size 112 --budget 128 --num-frames 8)
  launch codecvit demo-data --out demo_out/stages_data --train-clips 160 --test-clips 8 --stills
  launch codecvit pack demo_out/stages_data/train.csv --out "$RECORDS" --mode codec,frames,collage "${view[@]}"
  launch codecvit pack demo_out/stages_data/stills --out "$RECORDS" --size 112
  launch codecvit cluster "$RECORDS"/{codec,frames,collage} --name clusters --k 16 --n 10
  launch codecvit cluster "$RECORDS/image" --name clusters --k 16 --n 10
fi
use_environment
keep_compiled
use_local_disk
sets=("$RECORDS/image")
[[ $STAGES != *video* ]] || sets+=("$RECORDS"/{codec,frames,collage})
[[ $STAGES != *video* || $LOCAL == 1 ]] || sets+=("$RECORDS/ocr")
check_record_sets "${sets[@]}"

# --- Run -----------------------------------------------------------------------------------------------------------------
records=$(record_set "$RECORDS")
previous=$INIT
# stage NAME CONFIG ARGUMENTS FLAG...
stage() {
  local name=$1 config=$2 arguments=$3 workdir=$EXP_PATH/${VARIANT//\//-}/$1
  shift 3
  [[ ,$STAGES, == *,$name,* ]] || return 0
  run_to_end codecvit train "--config=src/configs/$config.py:$arguments,init=$previous$runlocal" "--workdir=$workdir" "$@"
  previous=$workdir
}
images="variant=$VARIANT,records=$records/image,classes=$IMAGE_CLASSES,fsdp=$FSDP,accumulate=$ACCUMULATE"
video="variant=$VARIANT,records=$records,images=$IMAGE_CLASSES,ocr=$OCR_CLASSES,video=$VIDEO_CLASSES,fsdp=$FSDP,accumulate=$VIDEO_ACCUMULATE"
stage 224 stage1_images "$images,size=224" "$@"
stage 448 stage1_images "$images,size=448" "$@"
stage video stage2_video "$video" "$@"
say "done: $previous"
