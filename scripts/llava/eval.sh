#!/usr/bin/env bash
# Evaluates a model with lmms-eval; assets are found by task.
#
#   MODEL=runs/stage2/model TASKS=nextqa,ai2d OUT=results bash scripts/llava/eval.sh [arguments of lmms-eval, such as --limit 8]
#   DRY_RUN=1 ... bash scripts/llava/eval.sh        # only print the command
#
#   MODEL       folder that `codecvit llava train` saved
#   TASKS       with commas, short names too, or all (default: ai2d,chartqa,docvqa_val)
#   OUT         results, with the counts of assets in OUT/codecvit (default: results/lmms)
#   ASSETS      folders of assets, several with colons (default: $HF_HOME/TASK_offline)
#   ON_MISS     error (default), pack or frames
#   BATCH_SIZE  questions at once (default 1)
#   GPUS        processes (default: those of nvidia-smi, 1 without any)
#   LMMS_VENV   environment of scripts/llava/setup_lmms_eval.sh (default: .venv-lmms beside setup.sh)
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;; esac
fail() { echo "eval.sh: $*" >&2; exit 2; }

[[ -n ${MODEL:-} ]] || fail "MODEL is not set (--help says what it is)"
found=0
if command -v nvidia-smi > /dev/null; then found=$(nvidia-smi --list-gpus | wc -l); fi
GPUS=${GPUS:-$((found > 0 ? found : 1))}
[[ $GPUS =~ ^[1-9][0-9]*$ ]] || fail "GPUS=$GPUS must be a number from 1"
LMMS_VENV=${LMMS_VENV:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.venv-lmms}
python=$LMMS_VENV/bin/python
command=(llava lmms --model "$MODEL" --tasks "${TASKS:-ai2d,chartqa,docvqa_val}" --out "${OUT:-results/lmms}" --on-miss "${ON_MISS:-error}"
  --batch-size "${BATCH_SIZE:-1}" --processes "$GPUS" --python "$python")
[[ -n ${ASSETS:-} ]] && command+=(--assets "$ASSETS")
command+=("$@")
if [[ ${DRY_RUN:-0} == 1 ]]; then
  exec codecvit "${command[@]}" --dry-run
fi
[[ -x $python ]] || fail "no $python: run scripts/llava/setup_lmms_eval.sh, or set LMMS_VENV"
exec "$python" -m codecvit "${command[@]}"
