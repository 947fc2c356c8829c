#!/usr/bin/env bash
# Run the tests on a clean checkout: makes the environment when there is none, then the fast suite (minutes on 2 cores).
#   bash run_scripts/test.sh              the fast tests
#   bash run_scripts/test.sh --all        also those marked slow
# Anything else goes to pytest:   bash run_scripts/test.sh tests/losses -x
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/setup.sh                                                  # 1. packages
"$PYTHON" -c 'import pytest, ruff, hypothesis' 2>/dev/null ||
    "$PYTHON" -m pip install --quiet --disable-pip-version-check "pytest>=8" "ruff>=0.12" "hypothesis>=6.100"
"$PYTHON" -m ruff check .                                                    # 2. style
select=(-m "not slow")
arguments=()
for word in "$@"; do
    if [ "$word" = --all ]; then select=(); else arguments+=("$word"); fi
done
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
"$PYTHON" -m pytest "${select[@]}" "${arguments[@]}"                         # 3. tests
