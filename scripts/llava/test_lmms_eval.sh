#!/usr/bin/env bash
# The lmms-eval plugin in the real lmms-eval, without network: every answer is that of our own runner, and a missing asset stops the run
# before its first question.
#
#   bash scripts/llava/test_lmms_eval.sh [--model DIR --benchmark DIR [options of the mosaics]] [--out DIR] [--venv .venv-lmms]
#
# --model      what `codecvit llava train` saved; it has to score twice chance (default: that of scripts/llava/demo.sh, which is run if need be)
# --benchmark  questions about whole videos, in a format of `codecvit llava eval`
# --out        everything it makes (default demo_out/lmms_test); emptied first
# --venv       made by scripts/llava/setup_lmms_eval.sh
# Options of the mosaics, such as --num-frames 16 --num-images 3 --size 64, are those that the model was trained with.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

model="" benchmark="" out="$PWD/demo_out/lmms_test" venv="$PWD/.venv-lmms" mosaics=()
while [ $# -gt 0 ]; do
  case "$1" in
    --model | --benchmark | --out | --venv)
      [ $# -ge 2 ] || { echo "test_lmms_eval.sh: $1 needs a value" >&2; exit 2; }
      case "$2" in /*) path=$2 ;; *) path=$caller/$2 ;; esac
      declare "${1#--}=$path"; shift 2 ;;
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) mosaics+=("$1"); shift ;;
  esac
done
if [ -z "$model$benchmark" ]; then
  demo=$PWD/demo_out/llava_proof model=$PWD/demo_out/llava_proof/video-0/train/model
  benchmark=$demo/questions/benchmark mosaics=(--size 112 --patch 14 --num-frames 8 --num-images 2)
  [ -d "$model" ] || bash scripts/llava/demo.sh --seeds 0
fi
for name in model benchmark; do
  [ -d "${!name}" ] || { echo "test_lmms_eval.sh: --$name '${!name}' is no folder (--help says which)" >&2; exit 2; }
done
python=$venv/bin/python
[ -x "$python" ] || { echo "test_lmms_eval.sh: no $python: run scripts/llava/setup_lmms_eval.sh, or name its environment with --venv" >&2; exit 2; }
case "$out" in / | "$HOME" | "$PWD") echo "test_lmms_eval.sh: --out $out would be emptied" >&2; exit 2 ;; esac
rm -rf "$out"
mkdir -p "$out"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME="$out/home" WANDB_MODE=disabled TOKENIZERS_PARALLELISM=false
tokens=16

codecvit() { "$python" -m codecvit "$@"; }
lmms() { # lmms RESULTS
  "$python" -m lmms_eval --model codecvit_llava --include_path "$out/tasks" --tasks codecvit_local --batch_size 2 --log_samples --output_path "$1" \
    --model_args "pretrained=$model,assets=$out/assets,video_root=$benchmark,results=$1/codecvit,dtype=float32"
}

codecvit llava eval --benchmark "$benchmark" --list-videos "$out/videos.jsonl"
codecvit llava assets --jsonl "$out/videos.jsonl" --root "$benchmark" --out "$out/assets" "${mosaics[@]}"
codecvit llava eval --model "$model" --benchmark "$benchmark" --assets "$out/assets" --out "$out/own" --dtype float32 --max-new-tokens $tokens "${mosaics[@]}"
"$python" - "$out/own/summary.json" << 'PY'
import json
import sys
from pathlib import Path

found = json.loads(Path(sys.argv[1]).read_text())
told = f"accuracy {found['accuracy']:.3f}, chance {found['chance']:.3f}"
sys.exit(f"test_lmms_eval.sh: {told}: equal answers of such a model would say little" if found["accuracy"] < 2 * found["chance"] else print(told))
PY
"$python" -m codecvit.llava.benchmarks.local_task write --benchmark "$benchmark" --out "$out/tasks" --max-new-tokens $tokens
lmms "$out/lmms"
cat "$out/lmms/codecvit/visuals-rank0.json"
"$python" -m codecvit.llava.benchmarks.local_task compare "$out/own" "$out/lmms"

# One asset less
gone=$(find "$out/assets/assets" -mindepth 1 -maxdepth 1 | sort | head -1)
rm -r "$gone"
if lmms "$out/missing" > "$out/missing.log" 2>&1 || [ -e "$out/missing/codecvit" ]; then
  echo "test_lmms_eval.sh: without ${gone##*/} the run went on; see $out/missing.log" >&2
  exit 1
fi
grep -q "videos have no usable assets" "$out/missing.log" || { echo "test_lmms_eval.sh: it stopped for another reason; see $out/missing.log" >&2; exit 1; }
echo "without ${gone##*/} lmms-eval stops before the first question"
echo "PASSED"
