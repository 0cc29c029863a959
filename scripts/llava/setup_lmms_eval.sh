#!/usr/bin/env bash
# Makes an environment of its own for lmms-eval, with CodecViT beside it: lmms-eval 0.7.3 wants av<16 and about 7 GB of packages.
#
#   bash scripts/llava/setup_lmms_eval.sh [VENV=.venv-lmms] [PYTHON=python3]
#
# Three to five minutes. Run again, it changes nothing but takes this clone's CodecViT.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

VENV=.venv-lmms PYTHON=python3 LMMS_EVAL=0.7.3
for argument in "$@"; do
  case "$argument" in
    VENV=* | PYTHON=*) declare "${argument%%=*}=${argument#*=}" ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "setup_lmms_eval.sh: unknown argument '$argument' (see --help)" >&2; exit 2 ;;
  esac
done
command -v "$PYTHON" > /dev/null || { echo "setup_lmms_eval.sh: no '$PYTHON' on PATH" >&2; exit 2; }
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup_lmms_eval.sh: $PYTHON is older than Python 3.11" >&2; exit 2; }

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
have=$("$VENV/bin/python" -c 'import importlib.metadata as m; print(m.version("lmms-eval"))' 2> /dev/null || true)
[ "$have" = "$LMMS_EVAL" ] || pip install --quiet "lmms-eval==$LMMS_EVAL"
# Our own requirements allow this av; --no-deps, so that nothing of lmms-eval's is replaced.
pip install --quiet --upgrade "setuptools>=77" wheel
pip install --quiet --no-deps --no-build-isolation --editable .
pip install --quiet "fsspec>=2024.6" "rich>=13.7" "safetensors>=0.5" "ml_collections>=1.0,<2"

"$VENV/bin/python" - << 'PY'
import importlib.metadata as metadata

for name in ("lmms-eval", "codecvit", "torch", "transformers", "accelerate", "av", "numpy", "huggingface_hub"):
    print(f"{name:16} {metadata.version(name)}")
from lmms_eval.models import MODEL_REGISTRY_V2

assert "codecvit_llava" in MODEL_REGISTRY_V2.list_model_names(), "lmms-eval does not see the plugin"
print("lmms-eval finds the model codecvit_llava")
PY
du -sh "$VENV"
