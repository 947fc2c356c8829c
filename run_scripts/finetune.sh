#!/usr/bin/env bash
# Fine-tune on a downstream data set:   bash run_scripts/finetune.sh MSD data_root=... pretrained=... fold=0
# The first word is a folder of downstream/, the others are settings; --help behind it lists them.
set -euo pipefail
cd "$(dirname "$0")/.."
folders=$(cd downstream && ls -d */ | tr -d / | tr '\n' ' ')
if [ $# -eq 0 ] || [ ! -f "downstream/$1/finetune.py" ]; then
    echo "mg3d: usage: bash run_scripts/finetune.sh FOLDER [name=value ...], FOLDER one of: $folders" >&2
    exit 2
fi
source run_scripts/setup.sh the-folder                                   # 1. packages: made once, then a no-op; --help is the folder's
folder=$1; shift
exec "$PYTHON" "downstream/$folder/finetune.py" "$@"                     # 2. train, evaluate, show
