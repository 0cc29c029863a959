#!/usr/bin/env bash
# A TPU pod from creation to the end of a training run, through gcloud (docs/tpu_pod.md). Two ways to use it:
#
#   . ./tpu_command.sh, then: tpu             a menu; `tpu status ...` is a sub-command
#   ./tpu_command.sh sync --tpu NAME --zone ZONE --project PROJECT --dir .
#
# The work is in scripts/tpu_command.py, which needs Python 3.10 or newer and nothing else.
# (bash and zsh; in zsh, $0 is the file that is sourced.)
TPU_COMMAND_FOLDER=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)

tpu() { "${PYTHON:-python3}" "$TPU_COMMAND_FOLDER/scripts/tpu_command.py" "$@"; }

case "${ZSH_EVAL_CONTEXT:-}" in
  *:file*) ;; # sourced by zsh
  *) if [ "${BASH_SOURCE[0]:-$0}" = "$0" ]; then
    exec "${PYTHON:-python3}" "$TPU_COMMAND_FOLDER/scripts/tpu_command.py" "$@"
  fi ;;
esac
