#!/usr/bin/env bash
# Does a language model behind an exported encoder see? Made clips -> questions -> mosaics -> a tiny Qwen2 behind the demo's
# encoder, trained on them -> multiple choice on digits and backgrounds it never saw; beside it the same model on one frame, and
# with visual tokens or times taken away. docs/results.md has the numbers.
#
#   bash scripts/llava/demo.sh [--out DIR] [--encoder DIR] [--seeds "0 1 2"] [--steps N]
#
# --out DIR      where everything goes (default demo_out/llava_proof); what is done there already is reused
# --encoder DIR  an export (default: that of scripts/demo.sh in demo_out, whose codec half is run first if need be)
# --seeds LIST   of model and training (default "0 1 2")
# --steps N      training steps of each model's second lesson
set -euo pipefail
# Folders are meant from where the caller stands, the rest from the root of the clone.
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=demo_out/llava_proof encoder="" seeds="0 1 2" steps=""
while [ $# -gt 0 ]; do
  case "$1" in
    --out | --encoder | --seeds | --steps)
      [ $# -ge 2 ] || { echo "demo.sh: $1 needs a value" >&2; exit 2; }
      declare "${1#--}=$2"; shift 2 ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "demo.sh: unknown argument '$1' (see --help)" >&2; exit 2 ;;
  esac
done
for name in out encoder; do
  case "${!name}" in "" | /*) ;; *) [ "$caller" = "$PWD" ] || declare "$name=$caller/${!name}" ;; esac
done

bash setup.sh DEVICE=cpu EXTRAS=demo,llava
export PATH="$PWD/.venv/bin:$PATH" JAX_PLATFORMS=cpu
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
# shellcheck disable=SC2086  # a list of numbers
exec python scripts/llava/demo.py --out "$out" ${encoder:+--encoder "$encoder"} --seeds $seeds ${steps:+--steps "$steps"}
