#!/usr/bin/env bash
# CodecViT in a container: builds the image, carries it to a machine without registry, runs a command in it.
#
#   bash scripts/docker.sh build [--device cuda|cpu] [--image NAME] [--extras a,b] [--dry-run]
#   bash scripts/docker.sh save FILE.tar [--device ...] [--image NAME] [--dry-run]
#   bash scripts/docker.sh load FILE.tar [--dry-run]
#   bash scripts/docker.sh run [option ...] [-- COMMAND [ARGUMENT ...]]
#
# --device     cuda (default; Dockerfile) or cpu (Dockerfile.cpu)
# --image      name of the image (codecvit:DEVICE)
# --extras     extras of pyproject.toml beside `train` and `torch`, such as llava
# --dry-run    print the docker command, run nothing
# Of run:
# --mount SRC:DST[:ro]    a folder of this host in the container; as often as needed
# --env NAME              hands a variable of the caller on, by its name; NCCL_*, proxy and cache variables go without saying
# --gpus all|0,1          of --device cuda (all)
# --shm-size SIZE         shared memory, which NCCL and the loaders' workers use (32g)
# --infiniband            the host's InfiniBand devices, and the right to lock memory for them
# --host-network          the host's network, which several hosts need to find each other
# The container is never privileged and runs as the caller, so that what it writes belongs to the caller; called by root, as the image's own
# user.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "docker.sh: $*" >&2; exit 2; }
verb=${1:-}
case "$verb" in
  build | save | load | run) shift ;;
  -h | --help) sed -n '2,22s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) fail "'$verb' is not one of build, save, load, run (see --help)" ;;
esac

device=cuda image="" extras="" dry_run=0 mounts=() names=() gpus="" shm_size="" infiniband=0 host_network=0 file="" words=()
while [ $# -gt 0 ]; do
  [ "$1" != -- ] || { shift; words=("$@"); break; }
  # Which verbs know the option.
  case "$1" in
    --dry-run) for_verbs="build save load run" ;;
    --device | --image) for_verbs="build save run" ;;
    --extras) for_verbs=build ;;
    --mount | --env | --gpus | --shm-size | --infiniband | --host-network) for_verbs=run ;;
    -*) fail "unknown option '$1' (see --help)" ;;
    *) for_verbs="save load" ;;
  esac
  [[ " $for_verbs " == *" $verb "* ]] || fail "$verb does not take '$1' (see --help)"
  case "$1" in
    --device | --image | --extras | --mount | --env | --gpus | --shm-size) [ $# -ge 2 ] || fail "$1 needs a value" ;;
  esac
  case "$1" in
    --dry-run) dry_run=1; shift ;;
    --device) device=$2; shift 2 ;;
    --image) image=$2; shift 2 ;;
    --extras) extras=$2; shift 2 ;;
    --mount) mounts+=("$2"); shift 2 ;;
    --env) names+=("$2"); shift 2 ;;
    --gpus) gpus=$2; shift 2 ;;
    --shm-size) shm_size=$2; shift 2 ;;
    --infiniband) infiniband=1; shift ;;
    --host-network) host_network=1; shift ;;
    *) [ -z "$file" ] || fail "one file, not '$file' and '$1'"; file=$1; shift ;;
  esac
done
[ ${#words[@]} = 0 ] || [ "$verb" = run ] || fail "$verb takes no command"
case "$device" in
  cuda) dockerfile=Dockerfile ;;
  cpu) dockerfile=Dockerfile.cpu ;;
  *) fail "--device $device is not one of cuda, cpu" ;;
esac
[ "$device" = cuda ] || [ -z "$gpus" ] || fail "--gpus goes with --device cuda"
image=${image:-codecvit:$device} gpus=${gpus:-all} shm_size=${shm_size:-32g}
[[ "$gpus" =~ ^(all|[0-9]+(,[0-9]+)*)$ ]] || fail "--gpus $gpus must be all or numbers such as 0,1"
[[ "$shm_size" =~ ^[0-9]+[kmg]$ ]] || fail "--shm-size $shm_size must be a size such as 32g"
[[ ! "$image" =~ ^- ]] || fail "--image $image is no name of an image"
case "$file" in "" | /*) ;; *) file=$caller/$file ;; esac

# A variable goes by its name alone: its value stands in no command line and in no layer of an image.
proxies=(http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY)
is_set() { declare -p "$1" > /dev/null 2>&1; }
command=(docker "$verb")
case "$verb" in
  build)
    command+=(--file "$dockerfile" --tag "$image" --build-arg "EXTRAS=$extras")
    for name in "${proxies[@]}"; do
      if is_set "$name"; then command+=(--build-arg "$name"); fi
    done
    command+=(.) ;;
  save)
    [ -n "$file" ] || fail "save needs a file"
    [ ! -e "$file" ] || fail "$file is there already"
    command+=(--output "$file" "$image") ;;
  load)
    [ -f "$file" ] || fail "'$file' is no file"
    command+=(--input "$file") ;;
  run)
    # --init hands signals on and buries children: SIGTERM has the run save.
    command+=(--rm --init --shm-size "$shm_size" --ulimit memlock=-1 --ulimit stack=67108864)
    # Time to save between SIGTERM and SIGKILL.
    command+=(--stop-timeout 600)
    [ ! -t 0 ] || command+=(--interactive --tty)
    [ "$(id -u)" = 0 ] || command+=(--user "$(id -u):$(id -g)")
    if [ "$device" = cuda ]; then
      # The quotes are docker's own: a comma would begin another field.
      [ "$gpus" = all ] || gpus="\"device=$gpus\""
      command+=(--gpus "$gpus")
    fi
    if [ $infiniband = 1 ]; then
      [ -d /dev/infiniband ] || [ $dry_run = 1 ] || fail "--infiniband: this host has no /dev/infiniband"
      command+=(--device /dev/infiniband --cap-add IPC_LOCK)
    fi
    [ $host_network = 0 ] || command+=(--network host)
    for mount in ${mounts[@]+"${mounts[@]}"}; do
      [[ "$mount" =~ ^([^:,]+):(/[^:,]*)(:ro)?$ ]] || fail "--mount $mount must be SRC:/DST or SRC:/DST:ro, without comma"
      source=${BASH_REMATCH[1]} target=${BASH_REMATCH[2]} readonly=${BASH_REMATCH[3]:+,readonly}
      case "$source" in /*) ;; *) source=$caller/$source ;; esac
      # docker would make a missing folder, as root.
      [ -d "$source" ] || fail "--mount $mount: $source is no folder"
      command+=(--mount "type=bind,source=$source,target=$target$readonly")
    done
    for name in ${names[@]+"${names[@]}"}; do
      [[ "$name" =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || fail "--env $name must be the name of a variable, without a value"
      is_set "$name" || fail "--env $name: this variable is not set"
    done
    while IFS= read -r name; do
      case "$name" in NCCL_* | CODECVIT_CACHE | CODECVIT_CACHE_GB) names+=("$name") ;; esac
    done < <(compgen -e)
    for name in "${proxies[@]}"; do
      if is_set "$name"; then names+=("$name"); fi
    done
    for name in ${names[@]+"${names[@]}"}; do command+=(--env "$name"); done
    command+=("$image" ${words[@]+"${words[@]}"}) ;;
esac
printf '$'
printf ' %q' "${command[@]}"
echo
[ $dry_run = 1 ] || exec "${command[@]}"
