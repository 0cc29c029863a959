#!/usr/bin/env bash
# Sets everything up and runs lint, import rules and tests; at most 12 minutes on 2 cores after set-up.
#
#   bash scripts/test.sh [pytest arguments]      e.g. bash scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash setup.sh DEVICE=cpu EXTRAS=demo,dev,llava
export PATH="$PWD/.venv/bin:$PATH"

ruff format --check .
ruff check .
lint-imports
exec pytest -n "${CODECVIT_TEST_WORKERS:-2}" --dist worksteal "$@"
