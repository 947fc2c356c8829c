#!/usr/bin/env bash
# Fine-tune on a downstream data set:   bash run_scripts/finetune.sh MSD data_root=... pretrained=... fold=0
# The first word is a folder of downstream/, the others are settings; --help behind it lists them. Without data_root it trains on a
# synthetic set, which shows the task and is no result.
set -euo pipefail
cd "$(dirname "$0")/.."
folders=$(cd downstream && ls -d */ | tr -d / | tr '\n' ' ')
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    sed -n '2,/^set -/{s/^# \{0,1\}//p}' "$0"
    echo "Folders: $folders"
    echo "Settings of one:   bash run_scripts/finetune.sh ACDC --help"
    exit 0
fi
if [ $# -eq 0 ] || [ ! -f "downstream/$1/finetune.py" ]; then
    wrong=$([ $# -eq 0 ] && echo "name a folder of downstream/ first" || echo "$1 is no folder of downstream/")
    echo "mg3d: $wrong: bash run_scripts/finetune.sh FOLDER [name=value ...], FOLDER one of: $folders" >&2
    exit 2
fi
source run_scripts/setup.sh the-folder                                   # 1. packages: made once, then a no-op; --help is the folder's
folder=$1; shift
exec "$PYTHON" "downstream/$folder/finetune.py" "$@"                     # 2. train, evaluate, show
