#!/usr/bin/env bash
# What tpu_command.sh has done on one worker of a TPU pod. It gets there with the code, as ~/.codecvit/worker.sh.
#
#   worker.sh unpack BUNDLE SHA256 DIR        make DIR equal to the tree in BUNDLE; files that no sync wrote stay
#   worker.sh start --job=JOB --token=T --dir=DIR [--processes=N --process=I --coordinator=HOST:PORT] -- COMMAND...
#   worker.sh status [JOB]                    one line of name=value; without JOB, the job that was started last
#   worker.sh log [--lines=N | --from=BYTE --to=BYTE] [--follow] [JOB]
#   worker.sh stop [--grace=SECONDS] [JOB]    end its processes, and no others
#   worker.sh check                           disk, Python, jobs, who holds the accelerators
#   worker.sh clear-logs                      remove libtpu's logs of this user
#
# A job has a folder ~/.codecvit/jobs/JOB: `record` (process id, its start time, boot id, token), `log`, and, once it has ended,
# `code`. A process id that was reused, by another process or after a reboot, is never taken for the job's.
# Exit status 3: refused, and trying again would not help.
set -uo pipefail

HOME_FOLDER=$HOME/.codecvit
JOBS=$HOME_FOLDER/jobs

refuse() { echo "worker.sh: $*" >&2; exit 3; }

# --- processes of a job -----------------------------------------------------------------------------------------------
boot_id() { cat /proc/sys/kernel/random/boot_id; }

# start_time PID: clock ticks between boot and the start of the process; nothing where there is none
start_time() {
  local stat fields
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  read -ra fields <<<"${stat##*) }" # the command's name, in brackets, may hold blanks
  [[ ${fields[0]} == Z ]] || echo "${fields[19]}"
}

# recorded JOB NAME: one value of the job's record
recorded() { sed -n "s/^$2=//p" "$JOBS/$1/record" 2>/dev/null; }

# members JOB: ids of the processes that run in the job's session and are its own
members() {
  local pid session leader alive=0 token
  leader=$(recorded "$1" pid) token=$(recorded "$1" token)
  [[ -n $leader && $(recorded "$1" boot) == "$(boot_id)" ]] || return 0
  [[ $(start_time "$leader") == "$(recorded "$1" start)" ]] && alive=1
  while read -r pid session; do
    [[ $session == "$leader" && -n $(start_time "$pid") ]] || continue
    # With its leader gone, the number of a session may be another one's by now.
    [[ $alive == 1 ]] || grep -qzxF "CODECVIT_JOB_TOKEN=$token" "/proc/$pid/environ" 2>/dev/null || continue
    echo "$pid"
  done < <(ps -e -o pid=,sid=)
}

state_of() {
  local job=$JOBS/$1
  if [[ ! -f $job/code && -n $(members "$1") ]]; then
    echo running
  elif [[ -f $job/code ]]; then # looked for after the processes: it is written before they end
    if [[ -f $job/stopped ]]; then echo stopped; elif [[ -f $job/interrupted ]]; then echo interrupted; else echo exited; fi
  elif [[ -f $job/stopped ]]; then
    echo stopped
  else
    echo lost # killed without a word, or the machine was restarted
  fi
}

job_name() {
  local job=${1:-}
  [[ -n $job ]] || job=$(cat "$HOME_FOLDER/last" 2>/dev/null) || refuse "no job was started here"
  [[ $job =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || refuse "'$job' is no name of a job: letters, digits, . _ -"
  [[ -d $JOBS/$job ]] || refuse "no job $job was started here"
  echo "$job"
}

# --- unpack -----------------------------------------------------------------------------------------------------------
unpack() {
  local bundle=$1 sum=$2 dir=$3 before path
  [[ $(sha256sum <"$bundle" | cut -d' ' -f1) == "$sum" ]] || { echo "worker.sh: $bundle arrived damaged" >&2; exit 1; }
  mkdir -p -- "$dir" || refuse "cannot make $dir"
  dir=$(cd -- "$dir" && pwd -P) || refuse "cannot enter $dir"
  [[ $dir != "$(cd "$HOME" && pwd -P)" && $dir != / ]] || refuse "$dir must be a folder of its own"
  before=$HOME_FOLDER/trees/$(sha256sum <<<"$dir" | cut -d' ' -f1)
  stage=$(mktemp -d "$HOME_FOLDER/stage.XXXXXX") || exit 1
  trap 'rm -rf -- "$stage"' EXIT
  tar -xzf "$bundle" -C "$stage" || exit 1
  if [[ -f $before ]]; then
    # Only what an earlier sync wrote and this one does not bring. LC_ALL=C: comm wants the order of sort.
    while IFS= read -r -d '' path; do
      rm -f -- "$dir/$path"
      (cd -- "$dir" && rmdir -p --ignore-fail-on-non-empty -- "$(dirname -- "./$path")" 2>/dev/null)
    done < <(LC_ALL=C comm -z -23 <(LC_ALL=C sort -z "$before") <(LC_ALL=C sort -z "$stage/manifest"))
    mkdir -p -- "$dir"
  fi
  mkdir -p "$HOME_FOLDER/trees"
  # What either sync may have written, in case tar is cut off half-way.
  { cat "$before" 2>/dev/null; cat "$stage/manifest"; } | LC_ALL=C sort -zu >"$before.new" && mv "$before.new" "$before" || exit 1
  tar -xf "$stage/tree.tar" -C "$dir" --no-same-owner || exit 1
  mv "$stage/manifest" "$before" || exit 1
  rm -f -- "$bundle"
  echo "$(tr -cd '\0' <"$before" | wc -c) files in $dir"
}

# --- start ------------------------------------------------------------------------------------------------------------
start() {
  local job='' token='' dir='' processes=1 process=0 coordinator='' other
  while [[ $# -gt 0 ]]; do
    case $1 in
      --job=*) job=${1#*=} ;;
      --token=*) token=${1#*=} ;;
      --dir=*) dir=${1#*=} ;;
      --processes=*) processes=${1#*=} ;;
      --process=*) process=${1#*=} ;;
      --coordinator=*) coordinator=${1#*=} ;;
      --) shift; break ;;
      *) refuse "start: unknown argument '$1'" ;;
    esac
    shift
  done
  [[ $job =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || refuse "'$job' is no name of a job: letters, digits, . _ -"
  [[ $# -gt 0 ]] || refuse "start: no command"
  cd -- "$dir" 2>/dev/null || refuse "there is no folder $dir here: sync first"
  mkdir -p "$JOBS"
  for other in "$JOBS"/*/; do
    other=$(basename "$other")
    [[ $other != "$job" && -d $JOBS/$other && $(state_of "$other") == running ]] && refuse "job $other is running here: kill it first"
  done
  if ! mkdir "$JOBS/$job" 2>/dev/null; then
    # The connection was lost after an earlier try had started it.
    [[ $(cat "$JOBS/$job/token" 2>/dev/null) == "$token" ]] || refuse "there is a job $job already: take another name"
    echo "job $job was started already"
    return
  fi
  echo "$token" >"$JOBS/$job/token"
  export CODECVIT_JOB=$job CODECVIT_JOB_TOKEN=$token
  if [[ $processes -gt 1 ]]; then
    # jax would ask the metadata server; said here, it is the same on every kind of host and can be seen.
    export JAX_COORDINATOR_ADDRESS=$coordinator JAX_NUM_PROCESSES=$processes JAX_PROCESS_ID=$process
  fi
  setsid bash "$HOME_FOLDER/worker.sh" run-job "$job" "$@" </dev/null >"$JOBS/$job/log" 2>&1 &
  for _ in {1..200}; do
    [[ -f $JOBS/$job/record ]] && break
    sleep 0.05
  done
  [[ -f $JOBS/$job/record ]] || refuse "job $job did not start: see $JOBS/$job/log"
  echo "$job" >"$HOME_FOLDER/last"
  echo "job $job runs, process $(recorded "$job" pid)"
}

# The first process of the job's session: writes the record, runs the command, writes how it ended.
run_job() {
  local job=$JOBS/$1 signalled='' code
  # A handler, unlike an ignored signal, is not inherited: the command gets the signals, this shell waits for it.
  trap 'signalled=1' TERM INT HUP
  printf '%s\n' "pid=$$" "start=$(start_time $$)" "boot=$(boot_id)" "token=$CODECVIT_JOB_TOKEN" >"$job/record.new"
  mv "$job/record.new" "$job/record"
  shift
  # shellcheck source=/dev/null
  if [[ -f .venv/bin/activate ]]; then . .venv/bin/activate; fi
  "$@"
  code=$?
  [[ -z $signalled ]] || touch "$job/interrupted"
  echo "$code" >"$job/code.new"
  mv "$job/code.new" "$job/code"
}

# --- status, log, stop ------------------------------------------------------------------------------------------------
status() {
  local job state code=- step marks now
  job=$(job_name "${1:-}") || exit
  state=$(state_of "$job") now=$(date +%s)
  [[ -f $JOBS/$job/code ]] && code=$(cat "$JOBS/$job/code")
  # Progress, as train --resume-forever counts it: commands that a script of several stages has printed, then the step.
  marks=$(grep -ac '^\$ ' "$JOBS/$job/log")
  step=$(tail -c 1000000 "$JOBS/$job/log" | sed -n '/^\$ /!p;/^\$ /s/.*/step -1:/p' | grep -aoE 'step -?[0-9]+:' | tail -n 1 | tr -cd '0-9-')
  echo "job=$job state=$state code=$code marks=$marks step=${step:--1} bytes=$(stat -c %s "$JOBS/$job/log")" \
    "age=$((now - $(stat -c %Y "$JOBS/$job/log"))) seconds=$((now - $(stat -c %Y "$JOBS/$job/token")))"
}

log() {
  local job lines=+1 from='' to='' follow=0
  while [[ ${1:-} == --* ]]; do
    case $1 in
      --lines=*) lines=${1#*=} ;;
      --from=*) from=${1#*=} ;;
      --to=*) to=${1#*=} ;;
      --follow) follow=1 ;;
      *) refuse "log: unknown argument '$1'" ;;
    esac
    shift
  done
  job=$(job_name "${1:-}") || exit
  if [[ -n $to ]]; then
    tail -c "+$((from + 1))" "$JOBS/$job/log" | head -c "$((to - from))"
  elif [[ $follow == 1 && $(state_of "$job") == running ]]; then
    exec tail -n "$lines" -f --pid="$(recorded "$job" pid)" "$JOBS/$job/log"
  else
    tail -n "$lines" "$JOBS/$job/log"
  fi
}

stop() {
  local grace=60 job pid left
  if [[ ${1:-} == --grace=* ]]; then grace=${1#*=}; shift; fi
  job=$(job_name "${1:-}") || exit
  left=$(members "$job")
  if [[ -z $left ]]; then
    echo "job $job is not running ($(state_of "$job"))"
    return
  fi
  touch "$JOBS/$job/stopped"
  for pid in $left; do kill -TERM "$pid" 2>/dev/null; done
  for ((i = 0; i < grace * 5; i++)); do
    [[ -n $(members "$job") ]] || break
    sleep 0.2
  done
  left=$(members "$job")
  for ((i = 0; i < 20; i++)); do
    [[ -n $(members "$job") ]] || break
    for pid in $(members "$job"); do kill -KILL "$pid" 2>/dev/null; done
    sleep 0.2
  done
  [[ -z $(members "$job") ]] || { echo "worker.sh: processes of job $job are still there: $(members "$job" | xargs)" >&2; exit 1; }
  echo "job $job is stopped${left:+, some of it by force after $grace s}"
}

# --- check, clear-logs ------------------------------------------------------------------------------------------------
check() {
  local device pid session job owner jobs=''
  echo "host $(hostname), $(nproc) cores, $(df -Ph "$HOME" | awk 'END {print $4}') free, $(python3 -V 2>&1)"
  for job in "$JOBS"/*/; do
    job=$(basename "$job")
    [[ -d $JOBS/$job && $(state_of "$job") == running ]] && jobs+=" $job"
  done
  echo "jobs running:${jobs:- none}"
  # Chips are /dev/accel* up to v4 and /dev/vfio/* after it.
  # shellcheck disable=SC2086  # patterns
  for device in ${ACCELERATORS:-/dev/accel* /dev/vfio/[0-9]*}; do
    [[ -e $device ]] || continue
    for pid in $(fuser "$device" 2>/dev/null); do
      session=$(ps -o sid= -p "$pid" | tr -d ' ') owner="not started by tpu_command.sh, which leaves it alone"
      for job in $jobs; do [[ $session == "$(recorded "$job" pid)" ]] && owner="job $job"; done
      echo "$device is held by process $pid ($(ps -o user=,comm= -p "$pid" | xargs)): $owner"
    done
  done
}

clear_logs() {
  local folder=${TPU_LOG_DIR:-/tmp/tpu_logs} job
  for job in "$JOBS"/*/; do
    job=$(basename "$job")
    [[ -d $JOBS/$job && $(state_of "$job") == running ]] && refuse "job $job is running here and writes to them: kill it first"
  done
  [[ -d $folder ]] || { echo "no $folder"; return; }
  echo "removed $(find "$folder" -maxdepth 1 \( -type f -o -type l \) -user "$(id -u)" -name '*tpu_driver*' -print -delete | wc -l) files of $folder"
}

command=${1:-}
[[ $# -gt 0 ]] && shift
case $command in
  unpack | start | status | log | stop | check) "$command" "$@" ;;
  run-job) run_job "$@" ;;
  clear-logs) clear_logs ;;
  *) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
