#!/usr/bin/env bash
# Assets of public benchmarks for the lmms-eval plugin; where the videos are, or come from, is up to you.
#
#   bash scripts/llava/preprocess_benchmark.sh TASK|all [--videos DIR] [--download] [--out DIR] [options of the mosaics, --workers N, --shard i/N]
#   DRY_RUN=1 bash scripts/llava/preprocess_benchmark.sh all      # only say which videos there are
#
# Assets come to $HF_HOME/TASK_offline, where scripts/llava/eval.sh finds them. `codecvit llava benchmark --help` tells all options.
set -euo pipefail
case ${1:-} in "" | -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; [ $# -gt 0 ]; exit ;; esac
[[ ${DRY_RUN:-0} == 1 ]] && set -- "$@" --dry-run
exec codecvit llava benchmark "$@"
