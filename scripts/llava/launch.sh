# shellcheck shell=bash
# Sourced by the scripts that train (pretrain_projector.sh, merv_full.sh, ...): checks their variables, prints them, launches.
#
# Where (the same in all of them):
#   GPUS          per machine (all that nvidia-smi lists); 0: this CPU, one process
#   NODES, NODE_RANK, MASTER_ADDR, MASTER_PORT    several machines: run the script on each; under Slurm by srun with one task per
#                 machine NODES and NODE_RANK are known
#   FSDP          1 shards weights and optimiser over all GPUs; 0 keeps all of them on each
#   LM_LAYER, ENCODER_LAYER    what FSDP shards by: names of the classes of their blocks; an empty
#                 ENCODER_LAYER keeps the encoders whole
#   DRY_RUN       1 prints everything, and launches nothing

fail() { echo "$(basename "$0"): $*" >&2; exit 2; }

# check NAME...: these are set, numbers are numbers, files are there.
check() {
  local name
  for name in "$@"; do
    [[ -n ${!name:-} ]] || fail "$name is not set (the head of this file says what it is)"
  done
  for name in GPUS NODES NODE_RANK MASTER_PORT FSDP BATCH MICRO SEED STEPS; do
    [[ ${!name} =~ ^[0-9]+$ ]] || fail "$name=${!name} must be a whole number"
  done
  [[ $EPOCHS =~ ^[0-9]*\.?[0-9]+$ ]] || fail "EPOCHS=$EPOCHS must be a number"
  [[ $FSDP == 0 || $FSDP == 1 ]] || fail "FSDP=$FSDP must be 0 or 1"
  ((NODES >= 1 && NODE_RANK < NODES)) || fail "NODE_RANK=$NODE_RANK must lie in 0..$((NODES - 1)) (NODES=$NODES)"
  ((NODES == 1 || GPUS > 0)) || fail "NODES=$NODES needs GPUS"
  ((NODES == 1)) || [[ -n $MASTER_ADDR ]] || fail "NODES=$NODES needs MASTER_ADDR, the address of machine 0"
  local processes=$((NODES * (GPUS > 0 ? GPUS : 1)))
  ((BATCH % (processes * MICRO) == 0)) ||
    fail "BATCH=$BATCH must be a multiple of $processes processes times MICRO=$MICRO"
  local path
  path=${DATA:-}
  [[ -z $path || $path == *://* || -f $path ]] || fail "DATA=$path does not exist"
  local part parts
  IFS=, read -ra parts <<< "${INIT_PROJECTOR:-}" # FILE, or NAME=FILE,NAME=FILE
  for part in "${parts[@]}"; do
    [[ -e ${part#*=} ]] || fail "INIT_PROJECTOR=$INIT_PROJECTOR: ${part#*=} does not exist"
  done
  [[ -z ${ENCODER:-} || -f $ENCODER/config.json ]] || fail "ENCODER=$ENCODER is no folder of \`codecvit export\`"
  [[ -z ${INIT:-} || -f $INIT/config.json ]] || fail "INIT=$INIT is neither a run nor a model"
}

# launch STAGE ARGUMENTS FLAG...: prints the command and, without DRY_RUN, runs it.
launch() {
  local stage=$1 arguments=$2
  shift 2
  local config="src/configs/llava.py:stage=$stage,$arguments,batch=$BATCH,micro=$MICRO,epochs=$EPOCHS,steps=$STEPS,seed=$SEED"
  local command=(codecvit llava train "--config=$config" "--workdir=$WORKDIR" "$@")
  local launcher=()
  if ((GPUS * NODES > 1)); then
    launcher=(accelerate launch --num_processes $((GPUS * NODES)) --num_machines "$NODES" --machine_rank "$NODE_RANK")
    launcher+=(--main_process_ip "${MASTER_ADDR:-127.0.0.1}" --main_process_port "$MASTER_PORT")
    launcher+=(--mixed_precision bf16 --dynamo_backend no)
    if [[ $FSDP == 1 ]]; then
      launcher+=(--use_fsdp --fsdp_version 2 --fsdp_reshard_after_forward true)
      launcher+=(--fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP)
      launcher+=(--fsdp_transformer_layer_cls_to_wrap "$LM_LAYER${ENCODER_LAYER:+,$ENCODER_LAYER}")
    else
      launcher+=(--multi_gpu)
    fi
    command=("${launcher[@]}" -m "${command[@]}")
  fi
  printf '$'
  printf ' %q' "${command[@]}"
  echo
  [[ $DRY_RUN == 1 ]] || "${command[@]}"
}

show() {
  local name
  for name in "$@" BATCH MICRO EPOCHS STEPS SEED WORKDIR GPUS NODES NODE_RANK MASTER_ADDR MASTER_PORT FSDP; do
    printf '  %-15s %s\n' "$name" "${!name:-(none)}"
  done
}

if [[ -z ${GPUS:-} ]]; then
  GPUS=0
  if command -v nvidia-smi > /dev/null; then GPUS=$(nvidia-smi --list-gpus | wc -l); fi
fi
NODES=${NODES:-${SLURM_NNODES:-1}} NODE_RANK=${NODE_RANK:-${SLURM_NODEID:-0}}
MASTER_ADDR=${MASTER_ADDR:-} MASTER_PORT=${MASTER_PORT:-29500} FSDP=${FSDP:-0} DRY_RUN=${DRY_RUN:-0}
LM_LAYER=${LM_LAYER:-Qwen3DecoderLayer} ENCODER_LAYER=${ENCODER_LAYER-OneVisionEncoderLayer}
EPOCHS=${EPOCHS:-1} STEPS=${STEPS:-0} SEED=${SEED:-0}
