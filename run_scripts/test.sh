#!/usr/bin/env bash
# Run the tests on a clean checkout: makes the environment when there is none, then the fast suite (minutes on 2 cores).
#   bash run_scripts/test.sh              the fast tests
#   bash run_scripts/test.sh --all        also those marked slow
# Anything else goes to pytest:   bash run_scripts/test.sh tests/losses -x
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/setup.sh                                                  # 1. packages, and those of the extra `dev`
missing=$("$PYTHON" - <<'PY'
import pathlib, tomllib
from importlib.metadata import PackageNotFoundError, version
from packaging.requirements import Requirement

extras = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
wanted = [Requirement(line) for line in extras["dev"]]
for package in wanted:
    try:
        there = package.specifier.contains(version(package.name), prereleases=True)
    except PackageNotFoundError:
        there = False
    if package.name == "mg3d":
        wanted += [Requirement(line) for extra in package.extras for line in extras[extra]]
    elif not there:
        print(str(package).replace(" ", ""))
PY
)
if [ -n "$missing" ]; then
    mapfile -t packages <<<"$missing"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
fi
"$PYTHON" -m ruff check .                                                    # 2. style
select=(-m "not slow")
arguments=()
for word in "$@"; do
    if [ "$word" = --all ]; then select=(); else arguments+=("$word"); fi
done
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
"$PYTHON" -m pytest "${select[@]}" "${arguments[@]}"                         # 3. tests
