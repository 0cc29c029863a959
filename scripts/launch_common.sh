# shellcheck shell=bash
# Sourced by the launch scripts of pretraining and image-text training: what they check, print, copy and hand over alike.
#
# Where (the same in all of them):
#   TPU_NAME, ZONE, PROJECT_ID    run on all hosts of that TPU pod by tpu_command.sh; without TPU_NAME on this host
#   LOCAL_DATA      folder on a disk of this host: shards of record sets that lie on gs:// or on a shared mount are copied there when
#                   they are first read (docs/data.md says how the copies are kept)
#   LOCAL_DATA_GB   most that the copies may take (nine tenths of what the disk has free)
#   DRY_RUN         1 prints everything and launches nothing
# Exit status: 2 a variable is wrong; 75 SIGTERM (or Ctrl-C) came, the run saved and goes on when it is started again; else that of the
# command that failed.

UNFINISHED=75 # EX_TEMPFAIL of sysexits.h
stop_asked=0

fail() { echo "$(basename "$0"): $*" >&2; exit 2; }

# Whether this is the one process that tells what runs.
speaks() { [[ ${JAX_PROCESS_ID:-${SLURM_PROCID:-0}} == 0 ]]; }
say() { if speaks; then echo "$*"; fi; }

# --- Check ---------------------------------------------------------------------------------------------------------------
require() {
  local name
  for name in "$@"; do
    [[ -n ${!name} ]] || fail "$name is not set (the head of this file says what it is; LOCAL=1 needs none)"
  done
}
whole_numbers() {
  local name
  for name in "$@"; do
    [[ ${!name} =~ ^[0-9]+$ ]] || fail "$name=${!name} must be a whole number"
  done
}
decimal_numbers() {
  local name
  for name in "$@"; do
    [[ ${!name} =~ ^[0-9]*\.?[0-9]+(e-?[0-9]+)?$ ]] || fail "$name=${!name} must be a number"
  done
}
switches() {
  local name
  for name in "$@"; do
    [[ ${!name} == 0 || ${!name} == 1 ]] || fail "$name=${!name} must be 0 or 1"
  done
}
# Values that become arguments of a config file, which a comma separates.
config_arguments() {
  local name
  for name in "$@"; do
    [[ ${!name} != *,* ]] || fail "$name=${!name} must not hold a comma, which separates the arguments of a config"
  done
}
# Folders of runs.
work_folders() {
  local name
  for name in "$@"; do
    [[ ${!name} != *://* || ${!name} == gs://* ]] || fail "$name=${!name} must be a folder that all hosts share, or gs://"
  done
}
check_place() {
  switches LOCAL DRY_RUN
  if [[ -n $TPU_NAME ]]; then
    [[ -n $ZONE && -n $PROJECT_ID ]] || fail "TPU_NAME=$TPU_NAME needs ZONE and PROJECT_ID"
    [[ $LOCAL == 0 ]] || fail "LOCAL=1 runs here: unset TPU_NAME"
  elif [[ -n $ZONE || -n $PROJECT_ID ]]; then
    fail "ZONE and PROJECT_ID go with TPU_NAME"
  fi
  if [[ -n $LOCAL_DATA_GB ]]; then
    [[ -n $LOCAL_DATA ]] || fail "LOCAL_DATA_GB goes with LOCAL_DATA"
    whole_numbers LOCAL_DATA_GB
  fi
}

# --- Say -----------------------------------------------------------------------------------------------------------------
show() {
  local name
  for name in "$@"; do
    say "$(printf '  %-18s %s' "$name" "${!name:-(none)}")"
  done
}
show_place() {
  local on="this host"
  [[ -z $TPU_NAME ]] || on="all hosts of TPU $TPU_NAME in $ZONE, project $PROJECT_ID"
  say "  on                 $on"
  show LOCAL_DATA LOCAL_DATA_GB
}
print_command() { if speaks; then printf '$'; printf ' %q' "$@"; echo; fi; }

# --- Prepare -------------------------------------------------------------------------------------------------------------
# hand_over SCRIPT ARGUMENT...: with TPU_NAME every host of the pod runs SCRIPT with the variables that the array VARIABLES names, and
# we end as it ends.
hand_over() {
  [[ -n $TPU_NAME ]] || return 0
  local name command=(./tpu_command.sh run --tpu "$TPU_NAME" --zone "$ZONE" --project "$PROJECT_ID" --wait -- env)
  for name in "${VARIABLES[@]}" LOCAL_DATA LOCAL_DATA_GB; do
    [[ -z ${!name} ]] || command+=("$name=${!name}")
  done
  command+=(bash "$@")
  print_command "${command[@]}"
  [[ $DRY_RUN == 0 ]] || exit 0
  exec "${command[@]}"
}

# The set-up of a LOCAL=1 run: one process on the CPU of this machine.
set_up_here() {
  [[ ${JAX_NUM_PROCESSES:-1} == 1 && ${SLURM_NTASKS:-1} == 1 ]] || fail "LOCAL=1 is a run of one process"
  bash setup.sh DEVICE=cpu EXTRAS=demo
  export PATH="$PWD/.venv/bin:$PATH" JAX_PLATFORMS=cpu
  # A compiled step is kept for the next run of the same shapes.
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-demo_out/compile_cache}"
}

use_environment() {
  command -v codecvit > /dev/null || export PATH="$PWD/.venv/bin:$PATH"
  [[ $DRY_RUN == 1 ]] || command -v codecvit > /dev/null ||
    fail "codecvit is not installed here: bash setup.sh DEVICE=cuda (or tpu, cpu)"
}

# Compiled steps are kept with the runs: one process writes, all of the next start read. Not in a bucket, where XLA can't write its part.
keep_compiled() {
  [[ $EXP_PATH != *://* ]] || return 0
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$EXP_PATH/compile_cache}"
}

use_local_disk() {
  [[ -n $LOCAL_DATA && $DRY_RUN == 0 ]] || return 0
  [[ -d $LOCAL_DATA && -w $LOCAL_DATA ]] || fail "LOCAL_DATA=$LOCAL_DATA is no folder that can be written to"
  local copies=$LOCAL_DATA/codecvit free held=0
  free=$(df -Pk -- "$LOCAL_DATA" | awk 'NR == 2 { print $4 }')
  [[ ! -d $copies ]] || held=$(du -sk -- "$copies" | cut -f1)
  local most=$(((free + held) * 1024 / 1000000000))
  [[ -n $LOCAL_DATA_GB ]] || LOCAL_DATA_GB=$((most * 9 / 10))
  ((LOCAL_DATA_GB > 0 && LOCAL_DATA_GB <= most)) ||
    fail "LOCAL_DATA_GB=$LOCAL_DATA_GB does not fit: $LOCAL_DATA has $most GB for copies"
  export CODECVIT_CACHE=$copies CODECVIT_CACHE_GB=$LOCAL_DATA_GB
  say "  shards are copied to $copies, $LOCAL_DATA_GB GB at most"
}

# A record set as the trainer is to read it: with LOCAL_DATA a folder becomes a URL, of which copies are kept.
record_set() {
  if [[ -n $LOCAL_DATA && $1 != *://* ]]; then
    case "$1" in /*) echo "file://$1" ;; *) echo "file://$PWD/$1" ;; esac
  else
    echo "$1"
  fi
}

# check_record_sets SET...: fails now, not in the weeks in which a later stage begins.
check_record_sets() {
  [[ $DRY_RUN == 0 ]] || return 0
  python - "$@" << 'PYTHON' || exit 2
import sys

from codecvit.files import exists, join

missing = [name for name in sys.argv[1:] if not exists(join(name, "manifest.json"))]
if missing:
    sys.exit(f"no finished record set (manifest.json) at {', '.join(missing)}: `codecvit pack` makes them")
PYTHON
}

# --- Run -----------------------------------------------------------------------------------------------------------------
# Prints a command and, without DRY_RUN, runs it.
launch() {
  print_command "$@"
  [[ $DRY_RUN == 1 ]] || "$@"
}

# A training run that either ends or, told by a signal, saves. It gets the signals that reach this shell: as the first process of a
# container, or under a scheduler that tells the shell alone, nobody else would pass them on. A run that was told to stop ends with
# status 0, as does one that another host stopped: only its checkpoints tell that the next stage must not begin.
run_to_end() {
  print_command "$@"
  [[ $DRY_RUN == 0 ]] || return 0
  [[ $stop_asked == 0 ]] || exit "$UNFINISHED"
  local word workdir="" status told
  for word in "$@"; do
    case "$word" in --workdir=*) workdir=${word#--workdir=} ;; esac
  done
  trap 'stop_asked=1' TERM INT
  "$@" &
  local child=$!
  trap 'told=1 stop_asked=1; kill -TERM "$child" 2> /dev/null || true' TERM INT
  [[ $stop_asked == 0 ]] || kill -TERM "$child"
  while told=0 && { wait "$child" && status=0 || status=$?; } && [[ $told == 1 ]]; do :; done
  # Told before it listened: there is nothing to save.
  ((status != 128 + 15 || stop_asked == 0)) || exit "$UNFINISHED"
  ((status == 0)) || exit "$status"
  python "${BASH_SOURCE[0]%/*}/stage_done.py" "$workdir" || exit $?
}

LOCAL=${LOCAL:-0} DRY_RUN=${DRY_RUN:-0}
TPU_NAME=${TPU_NAME:-} ZONE=${ZONE:-} PROJECT_ID=${PROJECT_ID:-}
LOCAL_DATA=${LOCAL_DATA:-} LOCAL_DATA_GB=${LOCAL_DATA_GB:-}
