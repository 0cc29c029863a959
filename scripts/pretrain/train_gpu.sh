#!/usr/bin/env bash
# Starts the processes of a run on GPUs: on one host, on several by hand, or as tasks of a Slurm job.
#
#   RECORDS=... EXP_PATH=... bash scripts/pretrain/train_gpu.sh [argument of train.sh ...]       one host, all its GPUs
#   NNODES=4 NODE_RANK=0 COORDINATOR=host0:4321 ... bash scripts/pretrain/train_gpu.sh           on each of four hosts, NODE_RANK 0 to 3
#   bash scripts/pretrain/train_gpu.sh bash scripts/contrastive/train.sh                         another script
#   bash scripts/pretrain/train_gpu.sh codecvit train --config=... --workdir=...                 a single run
#   sbatch scripts/pretrain/train.slurm                                                          Slurm calls this script
#
# One process per GPU, everywhere: each feeds one GPU and has loaders of its own, so a host reads and copies batches on as many cores as it
# has GPUs, the layout is that of Slurm, and the configs' loader_workers mean the same on one GPU and on eight. PROCESSES=1 has one process
# drive all GPUs of a host, which needs no coordinator on a single host.
#
# What runs: scripts/pretrain/train.sh, with its variables, unless a command stands behind.
# Where:
#   GPUS           of this host (CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists); 0: processes on the CPU
#   PROCESSES      of this host (one per GPU; 1 where GPUS=0)
#   NNODES, NODE_RANK, COORDINATOR    hosts, which one this is, and HOST:PORT of host 0 with a port that is free there
#   GRACE          seconds that the others get to end by themselves once a process has failed (90: a lost peer is noticed after 60)
#   DRY_RUN        1 prints everything and launches nothing
# In a Slurm job hosts and tasks, one per GPU, are those of the job: of these variables GPUS, GRACE and DRY_RUN count.
# Exit status: that of scripts/launch_common.sh; SIGTERM and Ctrl-C go to all processes, which save.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/launch_common.sh

case "${1:-}" in
  codecvit) command=(bash scripts/run_to_end.sh "$@") ;;
  "" | --*) command=(bash scripts/pretrain/train.sh "$@") ;;
  *) command=("$@") ;;
esac
[[ $LOCAL == 0 ]] || fail "LOCAL=1 is a run of one process: bash scripts/pretrain/train.sh"
[[ -z $TPU_NAME ]] || fail "TPU_NAME=$TPU_NAME: this script is for GPUs; bash scripts/pretrain/train.sh runs on a pod"
GRACE=${GRACE:-90}
switches DRY_RUN
whole_numbers GRACE

# --- Devices -------------------------------------------------------------------------------------------------------------
count_words() { local words; IFS=, read -ra words <<< "$1"; echo "${#words[@]}"; }
if [[ -z ${GPUS:-} ]]; then
  if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
    GPUS=$SLURM_GPUS_ON_NODE
  elif [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    GPUS=$(count_words "$CUDA_VISIBLE_DEVICES")
  else
    command -v nvidia-smi > /dev/null || fail "no nvidia-smi here, so no GPU is known: GPUS=0 runs on the CPU"
    listed=$(nvidia-smi --list-gpus) || fail "nvidia-smi lists no GPU: ${listed:-it failed}"
    GPUS=$(wc -l <<< "$listed")
  fi
fi
whole_numbers GPUS
if ((GPUS > 0)); then
  # Without the GPUs jax would go on quietly on the CPU.
  export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
  # XLA takes three quarters by default; the rest of the card is for nobody.
  export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.9}
else
  export JAX_PLATFORMS=cpu
fi

# --- Slurm ---------------------------------------------------------------------------------------------------------------
if [[ -n ${SLURM_JOB_ID:-} ]]; then
  for name in PROCESSES NNODES NODE_RANK COORDINATOR; do
    [[ -z ${!name:-} ]] || fail "$name=${!name}: a Slurm job has its own (--nodes, --ntasks-per-node of sbatch)"
  done
  tasks=${SLURM_NTASKS_PER_NODE:-} hosts=${SLURM_JOB_NUM_NODES:-1}
  [[ -n $tasks ]] || fail "the job was made without --ntasks-per-node, which says how many tasks a host has"
  # jax gives task i of a host its GPU i.
  ((GPUS == 0 || GPUS == tasks)) || fail "the job has GPUS=$GPUS per host and $tasks tasks per host: --gpus-per-node and --ntasks-per-node must agree"
  # All GPUs of a host are visible to each of its tasks: jax picks by number, and NCCL talks to the others directly.
  # A task that fails leaves the others time to notice and to say so; srun of 22.05 and later asks for --cpus-per-task anew.
  step=(srun --nodes="$hosts" --ntasks="$((hosts * tasks))" --ntasks-per-node="$tasks" --gpu-bind=none)
  step+=(--kill-on-bad-exit=0 --wait="$GRACE" --label)
  [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || step+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
  print_command "${step[@]}" "${command[@]}"
  [[ $DRY_RUN == 0 ]] || exit 0
  exec "${step[@]}" "${command[@]}"
fi

# --- Hosts without a scheduler -------------------------------------------------------------------------------------------
PROCESSES=${PROCESSES:-$((GPUS > 0 ? GPUS : 1))} NNODES=${NNODES:-1} NODE_RANK=${NODE_RANK:-0} COORDINATOR=${COORDINATOR:-}
whole_numbers PROCESSES NNODES NODE_RANK
((PROCESSES >= 1)) || fail "PROCESSES=$PROCESSES must be at least 1"
((GPUS % PROCESSES == 0)) || fail "PROCESSES=$PROCESSES must divide GPUS=$GPUS"
((NNODES >= 1 && NODE_RANK < NNODES)) || fail "NODE_RANK=$NODE_RANK must lie in 0..$((NNODES - 1)) (NNODES=$NNODES)"
total=$((NNODES * PROCESSES))
if ((NNODES > 1)); then
  [[ $COORDINATOR =~ ^[^:[:space:]]+:[0-9]+$ ]] || fail "COORDINATOR=$COORDINATOR must be HOST:PORT of host 0 (NNODES=$NNODES)"
elif [[ -n $COORDINATOR ]]; then
  fail "COORDINATOR=$COORDINATOR goes with NNODES"
elif ((total > 1)); then
  COORDINATOR=127.0.0.1:$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi
echo "GPUs $GPUS, processes $PROCESSES on host $NODE_RANK of $NNODES, coordinator ${COORDINATOR:-(none)}"

pids=()
for ((place = 0; place < PROCESSES; place++)); do
  variables=()
  if ((total > 1)); then
    rank=$((NODE_RANK * PROCESSES + place))
    variables=(JAX_COORDINATOR_ADDRESS="$COORDINATOR" JAX_NUM_PROCESSES="$total" JAX_PROCESS_ID="$rank")
    share=$((GPUS / PROCESSES))
    ((share == 0)) || variables+=(JAX_LOCAL_DEVICE_IDS="$(seq -s, $((place * share)) $(((place + 1) * share - 1)))")
  fi
  printf '$'
  printf ' %q' env "${variables[@]}" "${command[@]}"
  echo
  [[ $DRY_RUN == 0 ]] || continue
  # A session of its own, so that what it started can be ended with it.
  if ((PROCESSES > 1)); then
    setsid env "${variables[@]}" "${command[@]}" > >(sed -u "s/^/[$rank] /") 2>&1 &
  else
    setsid env "${variables[@]}" "${command[@]}" &
  fi
  pids+=($!)
done

# --- To the end of all ---------------------------------------------------------------------------------------------------
status=0 failed=-1  # failed: the second of the first failure, which may be 0
left=("${pids[@]}")
trap 'kill -TERM "${left[@]}" 2> /dev/null || true' TERM INT
while ((${#left[@]} > 0)); do
  # Looking rather than waiting: wait -n overlooks one that has ended before it, and knows no end to its patience.
  sleep 0.3 & wait $! || true
  running=()
  for pid in "${left[@]}"; do
    if kill -0 "$pid" 2> /dev/null; then
      running+=("$pid")
    else
      wait "$pid" && ended=0 || ended=$?
      # A failure is told rather than that others saved.
      if ((ended != 0)) && ((status == 0 || status == UNFINISHED)); then status=$ended; fi
      ((ended == 0 || ended == UNFINISHED || failed >= 0)) || failed=$SECONDS
    fi
  done
  left=("${running[@]}")
  if ((failed >= 0 && ${#left[@]} > 0 && SECONDS - failed >= GRACE)); then
    echo "train_gpu.sh: ${#left[@]} processes still run $GRACE s after one has failed: ending them" >&2
    for pid in "${left[@]}"; do kill -KILL -- "-$pid" 2> /dev/null || true; done
  fi
done
exit "$status"
