# Sourced by the other scripts: provides a Python ($PYTHON) with all packages.
# Uses the active Python if it has them; otherwise creates .venv and installs requirements.txt, once.
# PYTHON=python3.12 selects the interpreter of .venv. With --help, prints the head of the calling script and exits.
root=${root:-$PWD}
case " $* " in
    *" --help "* | *" -h "*)
        sed -n '2,/^set -/{/^#SBATCH/d;s/^# \{0,1\}//p}' "$0"
        echo "All settings:   python main.py print_config"
        exit 0
        ;;
esac
export TOKENIZERS_PARALLELISM=false PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

has_packages() {                                           # all of requirements.txt, in these versions
    "$1" - "$root/requirements.txt" <<'PY' >/dev/null 2>&1
import sys
from importlib.metadata import version
from packaging.requirements import Requirement

lines = (line.partition("#")[0].strip() for line in open(sys.argv[1]))
required = [Requirement(line) for line in lines if line and line[0] != "-"]
sys.exit(not all(package.specifier.contains(version(package.name), prereleases=True) for package in required))
PY
}

venv=$root/.venv
if [ ! -x "$venv/bin/python" ] && command -v python >/dev/null && has_packages python; then
    PYTHON=python
else
    if [ ! -x "$venv/bin/python" ]; then
        base=${PYTHON:-$(for p in python3.12 python3.11 python3; do
            "$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && { echo "$p"; break; }
        done)}
        [ -n "$base" ] || { echo "mg3d: no Python 3.11 to 3.13 found; install one, or set PYTHON=/path/to/python" >&2; exit 1; }
        echo "mg3d: creating .venv with $("$base" --version)"
        "$base" -m venv "$venv"
    fi
    PYTHON=$venv/bin/python
    if ! cmp -s "$root/requirements.txt" "$venv/requirements.installed" || ! has_packages "$PYTHON"; then
        echo "mg3d: installing requirements.txt into .venv (about 6 GB with CUDA, several minutes, once)"
        (cd "$root" && "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements.txt)
        has_packages "$PYTHON" || { echo "mg3d: packages are missing after the installation; delete .venv and try again" >&2; exit 1; }
        cp "$root/requirements.txt" "$venv/requirements.installed"
    fi
    PATH="$venv/bin:$PATH"
fi
export PYTHON PATH
