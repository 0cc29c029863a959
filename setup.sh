#!/usr/bin/env bash
# Sets up .venv with CodecViT and everything it needs, pinned by constraints.txt. Running it again changes nothing.
#
#   bash setup.sh DEVICE=cpu|cuda|tpu [JAX_VERSION=x.y.z] [EXTRAS=a,b] [VENV=.venv] [PYTHON=python] [CHECK=yes|no|only]
#
# The same on a laptop, a CUDA node and every host of a TPU pod. Python, disk and accelerator are checked before anything is installed,
# jax's own devices at the end; what is missing is named, with exit status 2.
#
# DEVICE       cpu (default); cuda (gpu means the same): jax[cuda13]; tpu: jax[tpu]
# JAX_VERSION  another jax than the one in constraints.txt; what is asked for is what is installed
# EXTRAS       extras of pyproject.toml beside `train` and `torch`, e.g. EXTRAS=demo,dev
# PYTHON       3.11 or newer; python3, python3.12 and python3.11 are looked at, as the python3 of some TPU VMs is older
# CHECK        only: check, install nothing; no: install for an accelerator that is elsewhere (a login node, an image)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

DEVICE=cpu JAX_VERSION="" EXTRAS="" VENV=.venv PYTHON="" CHECK=yes
for argument in "$@"; do
  case "$argument" in
    DEVICE=* | JAX_VERSION=* | EXTRAS=* | VENV=* | PYTHON=* | CHECK=*) declare "${argument%%=*}=${argument#*=}" ;;
    -h | --help) sed -n '2,14s/^# \{0,1\}//p' setup.sh; exit 0 ;;
    *) echo "setup.sh: unknown argument '$argument' (see setup.sh --help)" >&2; exit 2 ;;
  esac
done
say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 2; }

[ "$DEVICE" = gpu ] && DEVICE=cuda
case "$DEVICE" in cpu | cuda | tpu) ;; *) die "DEVICE=$DEVICE is not one of cpu, cuda (gpu), tpu" ;; esac
case "$CHECK" in yes | no | only) ;; *) die "CHECK=$CHECK is not one of yes, no, only" ;; esac
for extra in ${EXTRAS//,/ }; do
  grep -qE "^$extra = \[" pyproject.toml || die "EXTRAS names '$extra', which pyproject.toml does not define"
done

# --- Python and jax agree? --------------------------------------------------------------------------------------------
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
if [ -z "$PYTHON" ]; then
  PYTHON=python3
  for name in python3 python3.12 python3.11; do
    if command -v "$name" >/dev/null && new_enough "$name"; then PYTHON=$name; break; fi
  done
fi
command -v "$PYTHON" >/dev/null || die "no '$PYTHON' on PATH; install Python 3.11 or newer, or pass PYTHON=/path/to/python"
python_version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
new_enough "$PYTHON" || die "$PYTHON is Python $python_version; 3.11 or newer is needed (Ubuntu 22.04: apt-get install python3.11 python3.11-venv)"
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

# --- is there room, and what jax is to run on? -------------------------------------------------------------------------
# GB of an environment: measured on the CPU, reckoned from the sizes of the wheels for the others.
case "$DEVICE" in cpu) need=5 ;; tpu) need=6 ;; cuda) need=20 ;; esac
[ ! -x "$VENV/bin/python" ] || need=1
place=$VENV
while [ ! -d "$place" ]; do place=$(dirname "$place"); done
free=$(($(df -Pk "$place" | awk 'NR == 2 { print $4 }') * 1024 / 1000000000))
[ "$free" -ge "$need" ] || die "$VENV needs $need GB, but $place has $free GB free: make room, or pass VENV=/on/another/disk"

check_cuda() {
  local cuda driver least gpus
  cuda=$(sed -n 's/^cuda = .*jax\[cuda\([0-9]*\)\].*/\1/p' pyproject.toml)
  case "$cuda" in 12) least=525 ;; 13) least=580 ;; *) die "pyproject.toml asks for CUDA '$cuda', whose oldest driver is not known here" ;; esac
  command -v nvidia-smi >/dev/null ||
    die "DEVICE=cuda, but no nvidia-smi is on PATH: install the NVIDIA driver ($least or newer; a container: docker run --gpus all), or CHECK=no on a host without GPU"
  gpus=$(nvidia-smi --query-gpu=driver_version,name --format=csv,noheader 2>&1) || die "DEVICE=cuda, but nvidia-smi fails: $gpus"
  [ -n "$gpus" ] || die "DEVICE=cuda, but nvidia-smi lists no GPU"
  driver=$(head -1 <<<"$gpus" | cut -d, -f1)
  [[ "$driver" =~ ^[0-9]+(\.[0-9]+)*$ ]] || die "DEVICE=cuda, but nvidia-smi tells no driver version: $driver"
  [ "${driver%%.*}" -ge "$least" ] || die "the NVIDIA driver $driver is older than $least, which CUDA $cuda needs: update the driver"
  found="$(wc -l <<<"$gpus" | tr -d ' ') x$(head -1 <<<"$gpus" | cut -d, -f2-), driver $driver"
}
check_tpu() {
  local devices
  # libtpu itself comes with jax[tpu]. Older generations show as accel devices, v5e and later as vfio groups.
  devices=$(ls -d /dev/accel[0-9]* /dev/vfio/[0-9]* 2>/dev/null || true)
  [ -n "$devices" ] || die "DEVICE=tpu, but neither /dev/accel* nor /dev/vfio/* is there: this is no TPU VM (CHECK=no installs all the same)"
  found="$(wc -l <<<"$devices" | tr -d ' ') TPU chips ($(head -1 <<<"$devices"), ...)"
}
found="no accelerator asked for"
if [ "$CHECK" = no ]; then
  found="accelerator not looked for"
elif [ "$DEVICE" != cpu ]; then
  "check_$DEVICE"
elif command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus >/dev/null 2>&1; then
  found="a GPU that DEVICE=cuda would use"
fi
say "checked: Python $python_version, $free GB free at $place, $found"
[ "$CHECK" != only ] || exit 0

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
request=$({ echo "$DEVICE $extras $python_version"; cat "$constraints" pyproject.toml; } |
  "$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')

if [ "$(cat "$stamp" 2>/dev/null)" = "$request" ]; then
  say "nothing to install: $VENV already holds codecvit[$extras]"
else
  rm -f "$stamp"
  torch_pin=$(grep -E '^torch==' constraints.txt)
  if [ "$DEVICE" != cuda ] && ! "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
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
patience=()
# One host of a TPU pod waits for the others without an end.
[ "$DEVICE" != tpu ] || patience=(timeout 300)
status=0
${patience[@]+"${patience[@]}"} "$VENV/bin/python" - "$JAX_VERSION" "$DEVICE" "$CHECK" <<'PYTHON' || status=$?
import importlib.metadata as metadata
import sys

import jax

asked, device, check = sys.argv[1:]
version = metadata.version
if asked and version("jax") != asked:
    sys.exit(f"setup: asked for jax {asked}, but {version('jax')} is installed")
import torch

build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
print(f"setup: Python {sys.version.split()[0]}, jax {version('jax')}, flax {version('flax')}, "
      f"torch {torch.__version__} ({build}), transformers {version('transformers')}, av {version('av')}")
if check == "no":
    sys.exit()
try:
    devices = jax.devices()
except RuntimeError as error:
    print(f"setup: jax sees no {device} device: {error}", file=sys.stderr)
    sys.exit(2)
kind = {"cuda": "gpu"}.get(device, device)
print(f"setup: jax devices: {', '.join(str(d) for d in devices[:8])}")
if devices[0].platform != kind:
    print(f"setup: DEVICE={device}, but jax runs on {devices[0].platform}: the device was found, so another process may hold it, "
          "or JAX_PLATFORMS names another", file=sys.stderr)
    sys.exit(2)
PYTHON
[ "$status" != 124 ] || die "jax did not see the TPU in 5 minutes: on a pod setup.sh has to run on all hosts at once (./tpu_command.sh prepare)"
[ "$status" = 0 ] || exit "$status"
say "done; activate it with: source $VENV/bin/activate"
