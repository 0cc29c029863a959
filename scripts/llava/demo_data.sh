#!/usr/bin/env bash
# LLaVA training data from end to end, in under a minute: raw JSON -> mosaics -> training JSONL -> check.
#
#   bash scripts/llava/demo_data.sh [--videos DIR] [--out DIR]
#
# --videos DIR  any folder of .mp4 files; without it the demo makes 16 clips of moving digits
# --out DIR     where everything goes (default demo_out/llava); what is done there already is kept
set -euo pipefail
# Folders are meant from where the caller stands, the rest from the root of the clone.
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

videos="" out=""
while [ $# -gt 0 ]; do
  case "$1" in
    --videos | --out)
      [ $# -ge 2 ] || { echo "demo_data.sh: $1 needs a folder" >&2; exit 2; }
      declare "${1#--}=$2"; shift 2 ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "demo_data.sh: unknown argument '$1' (see --help)" >&2; exit 2 ;;
  esac
done
case "$videos" in "" | /*) ;; *) videos="$caller/$videos" ;; esac
case "$out" in "") out="$PWD/demo_out/llava" ;; /*) ;; *) out="$caller/$out" ;; esac
[ -z "$videos" ] || [ -d "$videos" ] || { echo "demo_data.sh: --videos $videos is no folder" >&2; exit 2; }

bash setup.sh DEVICE=cpu EXTRAS=demo
export PATH="$PWD/.venv/bin:$PATH"
mkdir -p "$out"

if [ -z "$videos" ]; then
  videos="$out/videos"
  codecvit demo-data --out "$videos" --train-clips 16 --test-clips 8
fi

# What a raw LLaVA data set looks like: rows with a video, and rows without.
python - "$videos" "$out/raw.json" <<'PY'
import json
import sys
from pathlib import Path

root, raw = map(Path, sys.argv[1:])
rows = [
    {
        "id": path.stem,
        "video": path.relative_to(root).as_posix(),
        "conversations": [
            {"from": "human", "value": "<video>\nWhat moves, and where to?"},
            {"from": "gpt", "value": f"It is called {path.parent.name}."},
        ],
    }
    for path in sorted(root.rglob("*.mp4"))
]
text = [{"from": "human", "value": "Say hello."}, {"from": "gpt", "value": "Hello."}]
rows.append({"id": "text-only", "conversations": text})
raw.write_text(json.dumps(rows, indent=1))
print(f"{raw}: {len(rows)} rows")
PY

codecvit llava data --input "$out/raw.json" --root "$videos" --out-jsonl "$out/train.jsonl" --out-images "$out/images"
codecvit llava check "$out/train.jsonl" --keys "$out/raw.json"
