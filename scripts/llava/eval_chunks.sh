#!/usr/bin/env bash
# Multiple-choice evaluation in chunks: processes on this host, or a Slurm array; then the table.
# Run again, it goes on where it stopped, with any number of chunks.
#
#   MODEL=runs/stage2 BENCHMARK=eval_data/NExT-QA ASSETS=nextqa OUT=results/nextqa CHUNKS=8 bash scripts/llava/eval_chunks.sh
#   SLURM=1 SBATCH_ARGS="--gres=gpu:1 --cpus-per-task=8 --time=2:00:00" CHUNKS=32 ... bash scripts/llava/eval_chunks.sh
#   DRY_RUN=1 ... bash scripts/llava/eval_chunks.sh        # print every command, run none
#
#   MODEL        folder that `codecvit llava train` saved
#   BENCHMARK    folder in MERV's or MVBench's format (docs/llava_evaluation.md)
#   OUT          results
#   ASSETS       --out of `codecvit llava assets`; without it set ON_MISS=pack
#   ON_MISS      error, pack or frames
#   STRATEGY     letter, loglik, first_char or mvbench_compat
#   CHUNKS       parts of the work; without Slurm GPUS by default
#   GPUS         here: processes at a time, chunk k on GPU k mod GPUS; those of nvidia-smi by default, 1 without any (on the CPU)
# Further arguments go to `codecvit llava eval`, for example: --batch-size 4 --retry-failures
set -euo pipefail

MODEL=${MODEL:-} BENCHMARK=${BENCHMARK:-} OUT=${OUT:-} ASSETS=${ASSETS:-} ON_MISS=${ON_MISS:-error} STRATEGY=${STRATEGY:-letter}
SLURM=${SLURM:-0} SBATCH_ARGS=${SBATCH_ARGS:-} DRY_RUN=${DRY_RUN:-0}
found=0
if command -v nvidia-smi > /dev/null; then found=$(nvidia-smi --list-gpus | wc -l); fi
GPUS=${GPUS:-$((found > 0 ? found : 1))}
CHUNKS=${CHUNKS:-$GPUS}

case ${1:-} in -h | --help) sed -n '2,19s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;; esac
fail() { echo "eval_chunks.sh: $*" >&2; exit 2; }
for name in MODEL BENCHMARK OUT; do
  [[ -n ${!name} ]] || fail "$name is not set (--help says what it is)"
done
for name in GPUS CHUNKS; do
  [[ ${!name} =~ ^[1-9][0-9]*$ ]] || fail "$name=${!name} must be a number from 1"
done
[[ $SLURM == 0 || $SLURM == 1 ]] || fail "SLURM=$SLURM must be 0 or 1"

command=(codecvit llava eval --model "$MODEL" --benchmark "$BENCHMARK" --out "$OUT" --strategy "$STRATEGY" --on-miss "$ON_MISS")
[[ -n $ASSETS ]] && command+=(--assets "$ASSETS")
command+=("$@")
merge=(codecvit llava eval --merge --out "$OUT")

launch() {
  printf '$' >&2
  printf ' %q' "$@" >&2
  echo >&2
  [[ $DRY_RUN == 1 ]] || "$@"
}

if [[ $SLURM == 1 ]]; then
  [[ $DRY_RUN == 1 ]] || command -v sbatch > /dev/null || fail "SLURM=1, but there is no sbatch on this host"
  [[ $DRY_RUN == 1 ]] || mkdir -p "$OUT/logs"
  # The task's number is known on its node alone; all else is quoted for the shell there.
  line="$(printf '%q ' "${command[@]}")--chunk \$SLURM_ARRAY_TASK_ID/$CHUNKS"
  read -ra resources <<< "$SBATCH_ARGS"
  job=$(launch sbatch --parsable --array="0-$((CHUNKS - 1))" --job-name=llava-eval --output="$OUT/logs/%A_%a.log" "${resources[@]}" --wrap "$line")
  job=${job%%;*}
  launch sbatch --parsable --dependency="afterany:${job:-JOB}" --job-name=llava-eval-merge --output="$OUT/logs/merge.log" --wrap "$(printf '%q ' "${merge[@]}")"
  echo "the table comes to $OUT/logs/merge.log"
  exit 0
fi

# GPUS workers; worker g does chunks g, g + GPUS, ... on its own GPU, one after the other.
worker() {
  local failed=0 k
  for ((k = $1; k < CHUNKS; k += GPUS)); do
    local where=()
    [[ $found -gt 0 ]] && where=(env CUDA_VISIBLE_DEVICES="$1")
    launch "${where[@]}" "${command[@]}" --chunk "$k/$CHUNKS" || { echo "eval_chunks.sh: chunk $k/$CHUNKS failed" >&2; failed=1; }
  done
  return "$failed"
}
workers=()
for ((g = 0; g < GPUS && g < CHUNKS; g++)); do
  worker "$g" &
  workers+=($!)
done
status=0
for process in "${workers[@]}"; do wait "$process" || status=1; done
[[ $status == 0 ]] || { echo "eval_chunks.sh: some chunks failed; run again to go on" >&2; exit 1; }
launch "${merge[@]}"
