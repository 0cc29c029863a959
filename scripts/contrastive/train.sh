#!/usr/bin/env bash
# Image-text training from low to high resolution: pre -> ft224 -> ft384, each from the stage before (src/configs/openvision.py).
# Run again, it goes on where it stopped; a stage that is finished costs a minute.
#
#   DATACOMP_PATH=gs://bucket/pairs EXP_PATH=gs://bucket/runs VOCAB_PATH=vocab.txt MODEL=B/16 bash scripts/contrastive/train.sh
#   LOCAL=1 bash scripts/contrastive/train.sh              # here, on made pairs, in minutes
#   DRY_RUN=1 ... bash scripts/contrastive/train.sh        # print everything, launch nothing
#
# It is one process of a run: alone on this host, or one of those that scripts/pretrain/train_gpu.sh or a TPU pod starts.
# Where: TPU_NAME, ZONE, PROJECT_ID, LOCAL_DATA, LOCAL_DATA_GB and the exit status: the head of scripts/launch_common.sh.
# What:
#   EXP_PATH         folder of the runs that all hosts share, or gs://; below it MODEL/pre, MODEL/ft224, MODEL/ft384
#   DATACOMP_PATH    pairs to train on: a folder that `codecvit pack-pairs` wrote, or KIND:PATH (docs/data.md)
#   VOCAB_PATH       tokenizer file
#   MODEL, TXT_MODEL, DECODER_NAME    image tower (B/16), sizes of text tower and decoder ("" takes MODEL's)
#   VERSION          1 contrastive and captioning, 2 captioning only
#   PRE_RES, FT_RES, FT2_RES          resolutions of the stages; 0 takes the published one
#   PRE_TRAIN_EPOCH, FT_TRAIN_EPOCH, FT2_TRAIN_EPOCH    pairs seen, in units of 1,281,167 as in the published scripts; 0 skips the stage
#   PRE_LR, FT_LR, FT2_LR             peak rates in units of 64 * batch factor
#   BATCH_FACTOR, FT_BATCH_FACTOR, FT2_BATCH_FACTOR     batches in units of 16,384
#   token_len, output_token_len, mask_ratio, fsdp_parallelism, tensor_parallelism
#   IN1K_DATA_DIR    labelled images, a folder of `codecvit pack-pairs --preset imagenet` or KIND:PATH, with IN1K_CLASSES, the file
#                    of class names, and IN1K_TEMPLATES: zero-shot accuracy
#   COCO_DATA_DIR, Flickr_DATA_DIR    test pairs, likewise: retrieval
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

source scripts/launch_common.sh

VARIABLES=(EXP_PATH DATACOMP_PATH VOCAB_PATH MODEL TXT_MODEL DECODER_NAME VERSION PRE_RES FT_RES FT2_RES PRE_TRAIN_EPOCH
  FT_TRAIN_EPOCH FT2_TRAIN_EPOCH PRE_LR FT_LR FT2_LR BATCH_FACTOR FT_BATCH_FACTOR FT2_BATCH_FACTOR token_len output_token_len
  mask_ratio fsdp_parallelism tensor_parallelism IN1K_DATA_DIR IN1K_CLASSES IN1K_TEMPLATES COCO_DATA_DIR Flickr_DATA_DIR)
MODEL=${MODEL:-B/16} TXT_MODEL=${TXT_MODEL:-} DECODER_NAME=${DECODER_NAME:-} VERSION=${VERSION:-1}
PRE_RES=${PRE_RES:-0} FT_RES=${FT_RES:-0} FT2_RES=${FT2_RES:-0}
PRE_TRAIN_EPOCH=${PRE_TRAIN_EPOCH:-10000} FT_TRAIN_EPOCH=${FT_TRAIN_EPOCH:-800} FT2_TRAIN_EPOCH=${FT2_TRAIN_EPOCH:-200}
PRE_LR=${PRE_LR:-8e-6} FT_LR=${FT_LR:-4e-7} FT2_LR=${FT2_LR:-1e-7}
BATCH_FACTOR=${BATCH_FACTOR:-2} FT_BATCH_FACTOR=${FT_BATCH_FACTOR:-1} FT2_BATCH_FACTOR=${FT2_BATCH_FACTOR:-0.5}
token_len=${token_len:-80} output_token_len=${output_token_len:-128} mask_ratio=${mask_ratio:-0}
fsdp_parallelism=${fsdp_parallelism:-1} tensor_parallelism=${tensor_parallelism:-1}
IN1K_DATA_DIR=${IN1K_DATA_DIR:-} COCO_DATA_DIR=${COCO_DATA_DIR:-} Flickr_DATA_DIR=${Flickr_DATA_DIR:-}
IN1K_CLASSES=${IN1K_CLASSES:-classes.txt} IN1K_TEMPLATES=${IN1K_TEMPLATES:-imagenet}
EXP_PATH=${EXP_PATH:-} DATACOMP_PATH=${DATACOMP_PATH:-} VOCAB_PATH=${VOCAB_PATH:-}

pairs=demo_out/pairs
if [[ $LOCAL == 1 ]]; then
  EXP_PATH=${EXP_PATH:-demo_out/pairs_runs}
  DATACOMP_PATH=${DATACOMP_PATH:-table:$pairs/train.jsonl} VOCAB_PATH=${VOCAB_PATH:-$pairs/vocab.txt}
  COCO_DATA_DIR=${COCO_DATA_DIR:-table:$pairs/test.jsonl} IN1K_DATA_DIR=${IN1K_DATA_DIR:-table:$pairs/test.jsonl}
  IN1K_CLASSES=$pairs/classes.txt IN1K_TEMPLATES=$pairs/templates.txt
fi

# --- Check ---------------------------------------------------------------------------------------------------------------
check_place
require EXP_PATH DATACOMP_PATH VOCAB_PATH
whole_numbers PRE_TRAIN_EPOCH FT_TRAIN_EPOCH FT2_TRAIN_EPOCH PRE_RES FT_RES FT2_RES token_len output_token_len \
  fsdp_parallelism tensor_parallelism
decimal_numbers PRE_LR FT_LR FT2_LR BATCH_FACTOR FT_BATCH_FACTOR FT2_BATCH_FACTOR mask_ratio
[[ $VERSION == 1 || $VERSION == 2 ]] || fail "VERSION=$VERSION must be 1 or 2"
config_arguments EXP_PATH DATACOMP_PATH VOCAB_PATH IN1K_DATA_DIR IN1K_CLASSES IN1K_TEMPLATES COCO_DATA_DIR Flickr_DATA_DIR
work_folders EXP_PATH

# --- Say what will run ---------------------------------------------------------------------------------------------------
say "image-text training of $MODEL (text ${TXT_MODEL:-as image}, decoder ${DECODER_NAME:-as image}, version $VERSION)"
show_place
show "${VARIABLES[@]}"
hand_over scripts/contrastive/train.sh

# --- Prepare -------------------------------------------------------------------------------------------------------------
if [[ $LOCAL == 1 && $DRY_RUN == 0 ]]; then
  set_up_here
  [[ -f $pairs/train.jsonl ]] || launch codecvit demo-data --pairs --out "$pairs"
  printf '%s\n' 'the number {}' 'a {} over flowers' 'a {} over a temple' > "$pairs/templates.txt"
fi
use_environment
keep_compiled
use_local_disk
# A folder stands for record sets of `codecvit pack-pairs`; another KIND:PATH is left as it is.
pairs_spec() {
  local path=${1#records:}
  if [[ $path == *:* && $path != *://* ]]; then echo "$1"; else echo "records:$(record_set "$path")"; fi
}

# --- Run -----------------------------------------------------------------------------------------------------------------
previous=
# stage NAME EPOCHS RES LR BATCH_FACTOR
stage() {
  local name=$1 epochs=$2 res=$3 lr=$4 factor=$5
  [[ $epochs == 0 ]] && return
  local arg="img=$MODEL,txt=$TXT_MODEL,decoder=$DECODER_NAME,version=$VERSION,stage=$name,res=$res,base_lr=$lr"
  arg+=",samples=$((epochs * 1281167)),batch_factor=$factor,pairs=$(pairs_spec "$DATACOMP_PATH"),vocab=$VOCAB_PATH"
  arg+=",token_len=$token_len,output_token_len=$output_token_len,mask_ratio=$mask_ratio"
  arg+=",fsdp=$fsdp_parallelism,tensor=$tensor_parallelism,init=$previous"
  [[ -n $IN1K_DATA_DIR ]] && arg+=",imagenet=$(pairs_spec "$IN1K_DATA_DIR"),classes=$IN1K_CLASSES,templates=$IN1K_TEMPLATES"
  [[ -n $COCO_DATA_DIR ]] && arg+=",coco=$(pairs_spec "$COCO_DATA_DIR")"
  [[ -n $Flickr_DATA_DIR ]] && arg+=",flickr=$(pairs_spec "$Flickr_DATA_DIR")"
  [[ $LOCAL == 1 ]] && arg+=",runlocal"
  local workdir=$EXP_PATH/${MODEL//\//-}/$name
  run_to_end codecvit train-pairs "--config=src/configs/openvision.py:$arg" "--workdir=$workdir"
  previous=$workdir
}
stage pre "$PRE_TRAIN_EPOCH" "$PRE_RES" "$PRE_LR" "$BATCH_FACTOR"
stage ft224 "$FT_TRAIN_EPOCH" "$FT_RES" "$FT_LR" "$FT_BATCH_FACTOR"
stage ft384 "$FT2_TRAIN_EPOCH" "$FT2_RES" "$FT2_LR" "$FT2_BATCH_FACTOR"
if [[ $LOCAL == 1 && $DRY_RUN == 0 && $VERSION == 1 && -n $previous ]]; then
  printf '%s\n' white red green blue yellow > "$pairs/colours.txt"
  printf '%s\n' 'A big {} two is at the top.' 'A small {} five is at the middle.' 'A big {} nine is at the left.' > "$pairs/colour_templates.txt"
  launch codecvit evaluate-pairs "$previous" --zero-shot "table:$pairs/test.jsonl" --columns text_0=colour \
    --classes "$pairs/colours.txt" --templates "$pairs/colour_templates.txt" --batch-size 100
fi
say "done: $previous"
