# Sourced by the other scripts: makes sure that `python` can import mg3d and its packages. Made once, then a no-op.
# Uses the active Python when it has everything; otherwise makes .venv and installs requirements.txt into it.
# Settings: PYTHON=python3.12 picks the interpreter for .venv.
# The other scripts print what stands at their head for --help, here, before anything is made.
case " $* " in
    *" --help "* | *" -h "*)
        sed -n '2,/^set -/{/^#SBATCH/d;s/^# \{0,1\}//p}' "$0"
        echo "Settings and their values:   python main.py print_config"
        exit 0
        ;;
esac
export TOKENIZERS_PARALLELISM=false

has_packages() {
    "$1" - <<'PY' >/dev/null 2>&1
import importlib.util as u, pathlib, sys
names = "torch torchvision pytorch_lightning monai transformers tokenizers safetensors huggingface_hub fsspec filelock pydantic timm scipy pandas pyarrow nibabel isal PIL SimpleITK sacred pkg_resources einops sklearn pycocoevalcap tensorboard matplotlib rich mg3d"
missing = [n for n in names.split() if u.find_spec(n) is None]
elsewhere = not missing and pathlib.Path(u.find_spec("mg3d").origin).resolve().parent.parent != pathlib.Path.cwd().resolve()
sys.exit(bool(missing or elsewhere))
PY
}

if [ ! -x .venv/bin/python ] && command -v python >/dev/null && has_packages python; then
    PYTHON=python
else
    if [ ! -x .venv/bin/python ]; then
        base=${PYTHON:-$(for p in python3.12 python3.11 python3; do
            "$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && { echo "$p"; break; }
        done)}
        [ -n "$base" ] || { echo "mg3d: no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python bash $0" >&2; exit 1; }
        echo "mg3d: making .venv with $("$base" --version)"
        "$base" -m venv .venv
    fi
    PYTHON=.venv/bin/python
    if ! cmp -s requirements.txt .venv/requirements.installed || ! has_packages .venv/bin/python; then
        echo "mg3d: installing requirements.txt into .venv (about 6 GB with CUDA, some minutes, once)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
        has_packages .venv/bin/python || { echo "mg3d: packages are still missing after the installation; remove .venv and try again" >&2; exit 1; }
        cp requirements.txt .venv/requirements.installed
    fi
    PATH="$PWD/.venv/bin:$PATH"
fi
export PYTHON PATH
