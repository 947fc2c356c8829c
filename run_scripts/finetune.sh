#!/usr/bin/env bash
# Fine-tune on a downstream data set:   bash run_scripts/finetune.sh MSD data_root=... pretrained=... fold=0
# The first argument is a folder of downstream/, the others are its settings. Without data_root it trains on synthetic data, which
# shows the task; the scores say nothing about real patients. Relative paths start at the current folder.
set -euo pipefail
export MG3D_CALLER_DIR="$PWD"
cd "$(dirname "$0")/.."
folders=$(cd downstream && ls -d */ | tr -d / | tr '\n' ' ')
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "$0"
    echo "Folders: $folders"
    echo "Settings of a folder:   bash run_scripts/finetune.sh ACDC --help"
    exit 0
fi
if [ $# -eq 0 ] || [ ! -f "downstream/$1/finetune.py" ]; then
    echo "mg3d: ${1:-no folder}: expected a folder of downstream/ as first argument, one of: $folders" >&2
    exit 2
fi
folder=$1; shift
case " $* " in
    *" --help "* | *" -h "* | *" help "*)                                # never installs packages
        for python in .venv/bin/python python; do
            PYTHONPATH=$PWD "$python" "downstream/$folder/finetune.py" --help 2>/dev/null && exit 0
        done
        echo "The packages are not installed yet. Settings as declared in downstream/$folder/finetune.py and mg3d/finetune/settings.py:"
        sed -n '/^class .*Settings(/,/^ *\(@\|def \)/{/^    model_config/,/^    )/d;/^ *\(@\|def \)/d;p}' \
            "downstream/$folder/finetune.py" $([ "$folder" != custom ] || echo mg3d/finetune/custom.py) mg3d/finetune/settings.py
        exit 0
        ;;
esac
source run_scripts/setup.sh the-folder                                   # 1. packages, installed once (an argument: setup.sh reads $@)
exec "$PYTHON" "downstream/$folder/finetune.py" "$@"                     # 2. train, evaluate, show
