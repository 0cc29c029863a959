#!/usr/bin/env bash
# Runs one training command as a scheduler wants it: SIGTERM saves, and the exit status tells a run that is done (0) from one that saved
# and goes on when it is started again (75).
#
#   bash scripts/run_to_end.sh codecvit train --config=... --workdir=...
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/launch_common.sh"
[[ " $* " == *" --workdir="* ]] || fail "the command has no --workdir=DIR"
run_to_end "$@"
