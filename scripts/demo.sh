#!/usr/bin/env bash
# The main job from end to end on this machine: video files -> codec patches -> records -> cluster labels -> pretraining ->
# probe -> PyTorch folder, and a report that compares codec selection with uniform frames at the same token budget.
#
#   bash scripts/demo.sh [--videos DIR] [--out DIR]
#
# --videos DIR  any folder of video files; without it the demo makes its own data set of moving digits
# --out DIR     where everything goes (default demo_out); what is done there already is reused
set -euo pipefail
# Folders are meant from where the caller stands, the rest from the root of the clone.
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

videos="" out=demo_out
while [ $# -gt 0 ]; do
  case "$1" in
    --videos | --out)
      [ $# -ge 2 ] || { echo "demo.sh: $1 needs a folder" >&2; exit 2; }
      declare "${1#--}=$2"; shift 2 ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "demo.sh: unknown argument '$1' (see --help)" >&2; exit 2 ;;
  esac
done
case "$videos" in "" | /*) ;; *) [ "$caller" = "$PWD" ] || videos="$caller/$videos" ;; esac
case "$out" in /*) ;; *) [ "$caller" = "$PWD" ] || out="$caller/$out" ;; esac
[ -z "$videos" ] || [ -d "$videos" ] || { echo "demo.sh: --videos $videos is no folder" >&2; exit 2; }

bash setup.sh DEVICE=cpu EXTRAS=demo
export PATH="$PWD/.venv/bin:$PATH" JAX_PLATFORMS=cpu
# Large pages for malloc: a training step on a CPU takes about a tenth less time (docs/benchmarks.md).
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
# Both runs of the demo have the same shapes: the second one finds its step compiled.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$out/compile_cache}"
exec python scripts/demo.py ${videos:+--videos "$videos"} --out "$out"
