#!/usr/bin/env bash
# Both stages of the pretraining recipe, shrunk by :runlocal to 20 steps each on the demo's data: clips and stills -> record
# sets -> cluster labels -> stage 1 (single images) -> stage 2 (images, text, codec patches, frames, collages).
#
#   bash scripts/pretrain/demo_stages.sh [OUT]      (default demo_out; what is done there already is reused)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:-demo_out}

bash setup.sh DEVICE=cpu EXTRAS=demo
export PATH="$PWD/.venv/bin:$PATH" JAX_PLATFORMS=cpu
# A compiled step is kept for the next run of the same shapes.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$out/compile_cache}"

run() { echo "\$ $*"; "$@"; }
view=(--size 112 --budget 128 --num-frames 8)
run codecvit demo-data --out "$out/stages_data" --train-clips 160 --test-clips 8 --stills
run codecvit pack "$out/stages_data/train.csv" --out "$out/stages" --mode codec,frames,collage "${view[@]}"
run codecvit pack "$out/stages_data/stills" --out "$out/stages" --size 112
run codecvit cluster "$out"/stages/{codec,frames,collage} --name clusters --k 16 --n 10
run codecvit cluster "$out/stages/image" --name clusters --k 16 --n 10
run codecvit train "--config=src/configs/stage1_images.py:runlocal,records=$out/stages/image" "--workdir=$out/runs/stage1"
run codecvit train "--config=src/configs/stage2_video.py:runlocal,records=$out/stages,init=$out/runs/stage1" \
  "--workdir=$out/runs/stage2"
run codecvit plot "$out/runs/stage1" "$out/runs/stage2" --out "$out/stages.png"
