#!/usr/bin/env bash
# Checks and times everything that waits for a GPU, in about ten minutes: attention and model tests, the training step
# beside PyTorch, the head up to two million classes. Needs jax, flax, optax, numpy; torch and pytest where they are there.
#
#   OUT=results bash benchmarks/gpu.sh      (from the root of a clone; codecvit need not be installed)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
out=${OUT:-out}
mkdir -p "$out"

# The package is src/ under another name: a link does where it is not installed.
python3 -c "import codecvit" 2>/dev/null || { mkdir -p "$out/path"; ln -sfn "$PWD/src" "$out/path/codecvit"; }
export PYTHONPATH="$out/path${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
export JAX_COMPILATION_CACHE_DIR="$out/compile_cache" XLA_PYTHON_CLIENT_MEM_FRACTION=.9

failed=0
part() {
  local name=$1
  shift
  echo "== $name: $*"
  if timeout 300 "$@" >"$out/$name.txt" 2>&1; then echo "   done"; else echo "   FAILED ($?)" && failed=1; fi
  tail -n 40 "$out/$name.txt"
}

python3 - <<'PYTHON' | tee "$out/machine.txt"
import importlib.util, platform, subprocess
import jax
print("Python", platform.python_version(), "jax", jax.__version__, jax.devices())
have = [name for name in ("flax", "optax", "torch", "pytest") if importlib.util.find_spec(name)]
print("there are", ", ".join(have))
subprocess.run(["nvidia-smi", "-L"], check=False)
PYTHON
if python3 -c "import pytest" 2>/dev/null; then
  part tests env JAX_PLATFORMS=cuda,cpu python3 -m pytest -q -p no:cacheprovider -o addopts= --import-mode=importlib \
    tests/models/test_attention.py
else
  echo "== tests: skipped, pytest is not installed"
fi
part train_step python3 benchmarks/train_step.py --minutes 3 # the table comes before the limit of a part
part head python3 benchmarks/head.py --classes 2097152 --rates 0.1 --repeats 5
part head_bf16 python3 benchmarks/head.py --classes 2097152 --rates 0.1 --repeats 5 --first-moment bfloat16
part head_scaling python3 benchmarks/head.py --classes 65536 524288 --rates 1 0.1 --repeats 5
exit $failed
