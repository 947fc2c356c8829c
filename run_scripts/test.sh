#!/usr/bin/env bash
# Run ruff and the fast tests (minutes on 2 cores); creates the environment if needed.
#   bash run_scripts/test.sh              the fast tests
#   bash run_scripts/test.sh --all        also those marked slow
# Other arguments are passed to pytest:   bash run_scripts/test.sh tests/losses -x
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/setup.sh                                                  # 1. packages, and those of the extra `dev`
missing=$("$PYTHON" - <<'PY'
import pathlib, tomllib
from importlib.metadata import PackageNotFoundError, version
from packaging.requirements import Requirement

extras = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
required = [Requirement(line) for line in extras["dev"]]
for package in required:
    try:
        installed = package.specifier.contains(version(package.name), prereleases=True)
    except PackageNotFoundError:
        installed = False
    if package.name == "mg3d":
        required += [Requirement(line) for extra in package.extras for line in extras[extra]]
    elif not installed:
        print(str(package).replace(" ", ""))
PY
)
if [ -n "$missing" ]; then
    mapfile -t packages <<<"$missing"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
fi
"$PYTHON" -m ruff check .                                                    # 2. style
select=(-m "not slow" -n 2 --dist loadfile --no-loadscope-reorder)  # two processes, files in the order of their names; slow tests in one
arguments=()
for argument in "$@"; do
    if [ "$argument" = --all ]; then select=(); else arguments+=("$argument"); fi
done
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$PYTHON" -m pytest "${select[@]}" "${arguments[@]}"                         # 3. tests
