#!/usr/bin/env bash
# Pre-train with one process per GPU of this node; everything else as pretrain.sh.
#   bash run_scripts/pretrain_multi_gpus.sh                             all GPUs
#   bash run_scripts/pretrain_multi_gpus.sh devices=4 batch_size=64     four of them
#   bash run_scripts/pretrain_multi_gpus.sh devices=2 accelerator=cpu   two processes on the CPU, to try it out
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/setup.sh                                              # 1. packages
words=$("$PYTHON" tools/choose_preset.py "$@")                           # 2. what to run
source run_scripts/synthetic_data.sh                                     # 3. data: made once, then a no-op
devices=$(printf '%s\n' "$@" | sed -n 's/^devices=//p' | tail -n 1)      # 4. processes: devices=N, or every GPU
devices=${devices:-$("$PYTHON" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
eval "exec \"\$PYTHON\" main.py with $words devices=$devices"
