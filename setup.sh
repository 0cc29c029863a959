#!/usr/bin/env bash
# Sets up .venv with CodecViT and everything it needs, pinned by constraints.txt. Running it again changes nothing.
#
#   bash setup.sh DEVICE=cpu|cuda|tpu [JAX_VERSION=x.y.z] [EXTRAS=a,b] [VENV=.venv] [PYTHON=python3]
#
# DEVICE       cpu (default); cuda (gpu means the same): jax[cuda13]; tpu: jax[tpu]
# JAX_VERSION  another jax than the one in constraints.txt; what is asked for is what is installed
# EXTRAS       extras of pyproject.toml beside `train` and `torch`, e.g. EXTRAS=demo,dev
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

DEVICE=cpu JAX_VERSION="" EXTRAS="" VENV=.venv PYTHON=python3
for argument in "$@"; do
  case "$argument" in
    DEVICE=* | JAX_VERSION=* | EXTRAS=* | VENV=* | PYTHON=*) declare "${argument%%=*}=${argument#*=}" ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' setup.sh; exit 0 ;;
    *) echo "setup.sh: unknown argument '$argument' (see setup.sh --help)" >&2; exit 2 ;;
  esac
done
say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 2; }

[ "$DEVICE" = gpu ] && DEVICE=cuda
case "$DEVICE" in cpu | cuda | tpu) ;; *) die "DEVICE=$DEVICE is not one of cpu, cuda (gpu), tpu" ;; esac
for extra in ${EXTRAS//,/ }; do
  grep -qE "^$extra = \[" pyproject.toml || die "EXTRAS names '$extra', which pyproject.toml does not define"
done

# --- Python and jax agree? --------------------------------------------------------------------------------------------
command -v "$PYTHON" >/dev/null || die "no '$PYTHON' on PATH; install Python 3.11 or newer, or pass PYTHON=/path/to/python"
python_version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$PYTHON is Python $python_version; 3.11 or newer is needed"
if [ "$python_version" = 3.11 ]; then
  jax_range=">=0.10,<0.11" jax_words="0.10.x (the last jax for Python 3.11)"
else
  jax_range=">=0.10,<0.13" jax_words="0.10.x to 0.12.x"
fi
if [ -n "$JAX_VERSION" ]; then
  [[ "$JAX_VERSION" =~ ^[0-9]+\.[0-9]+\.[0-9]+(\.[0-9]+)?$ ]] || die "JAX_VERSION=$JAX_VERSION is no x.y.z"
  minor=$(cut -d. -f1,2 <<<"$JAX_VERSION")
  case "$python_version $minor" in
    "3.11 0.10" | 3.1[2-9]" "0.10 | 3.1[2-9]" "0.11 | 3.1[2-9]" "0.12) ;;
    *) die "JAX_VERSION=$JAX_VERSION is outside the supported range for Python $python_version: $jax_words" ;;
  esac
fi

# --- the virtual environment ------------------------------------------------------------------------------------------
if [ ! -x "$VENV/bin/python" ]; then
  say "creating $VENV with Python $python_version"
  "$PYTHON" -m venv "$VENV" || die "could not create $VENV; on Debian or Ubuntu: apt-get install python3-venv"
else
  have=$("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  [ "$have" = "$python_version" ] || die "$VENV holds Python $have, asked for $python_version: remove it or pass VENV=another"
  say "reusing $VENV"
fi
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

# constraints.txt pins everything; an explicit JAX_VERSION replaces its jax pins.
constraints="$VENV/constraints.txt"
if [ -n "$JAX_VERSION" ]; then
  grep -vE '^(jax|jaxlib|jax-cuda[^=]*|libtpu)==' constraints.txt >"$constraints"
  echo "jax==$JAX_VERSION" >>"$constraints"
else
  cp constraints.txt "$constraints"
fi
# Gradio wants Pillow below 13.
case ",$EXTRAS," in *,web,*) sed -i 's/^pillow==.*/pillow==12.3.0/' "$constraints" ;; esac

extras="train,torch"
[ "$DEVICE" = cpu ] || extras="$extras,$DEVICE"
[ -z "$EXTRAS" ] || extras="$extras,$EXTRAS"
# What was installed last time: the same request on the same files needs no package index at all.
stamp="$VENV/codecvit-setup"
request=$({ echo "$DEVICE $extras $python_version"; cat "$constraints" pyproject.toml; } | sha256sum | cut -d' ' -f1)

if [ "$(cat "$stamp" 2>/dev/null)" = "$request" ]; then
  say "nothing to install: $VENV already holds codecvit[$extras]"
else
  rm -f "$stamp"
  torch_pin=$(grep -E '^torch==' constraints.txt)
  if [ "$DEVICE" = cpu ] && ! "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
    say "installing $torch_pin, CPU build"
    pip install --quiet --no-deps --retries 1 --timeout 15 --index-url https://download.pytorch.org/whl/cpu "$torch_pin" 2>"$VENV/torch.log" ||
      say "PyTorch's CPU index gave no $torch_pin (see $VENV/torch.log); taking the package index's own build, which may be a CUDA build of several GB"
  fi
  say "installing codecvit[$extras], jax ${JAX_VERSION:-$jax_range as pinned}"
  pip install --quiet --constraint "$constraints" --editable ".[$extras]" 2> >(grep -v 'neither a file nor a directory' >&2)
  echo "$request" >"$stamp"
fi

# --- what came out ----------------------------------------------------------------------------------------------------
[ "$DEVICE" = cpu ] && export JAX_PLATFORMS=cpu
"$VENV/bin/python" - "$JAX_VERSION" "$DEVICE" <<'PYTHON'
import importlib.metadata as metadata
import sys

import jax

asked, device = sys.argv[1:]
version = metadata.version
if asked and version("jax") != asked:
    sys.exit(f"setup: asked for jax {asked}, but {version('jax')} is installed")
import torch

build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
print(f"setup: Python {sys.version.split()[0]}, jax {version('jax')}, flax {version('flax')}, "
      f"torch {torch.__version__} ({build}), transformers {version('transformers')}, av {version('av')}")
try:
    devices = jax.devices()
except RuntimeError as error:
    sys.exit(f"setup: jax sees no {device} device: {error}")
kind = {"cuda": "gpu"}.get(device, device)
print(f"setup: jax devices: {', '.join(str(d) for d in devices[:8])}")
if devices[0].platform != kind:
    sys.exit(f"setup: DEVICE={device}, but jax runs on {devices[0].platform}: check the driver, then run setup.sh again")
PYTHON
say "done; activate it with: source $VENV/bin/activate"
