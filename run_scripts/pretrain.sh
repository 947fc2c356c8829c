#!/usr/bin/env bash
# Pre-train, by what is found here:
#   no data, no GPU   synthetic chests and the small model on the CPU: about ten minutes on 2 cores
#   no data, a GPU    the same on the GPU; `preset=full` trains Swin-B on it
#   data and a GPU    Swin-B and RadBERT on data/pretrain_arrows (or data_root=...)
# Ends with a table (untrained against trained) and writes result/. Safe to run again: what is done is skipped, what was cut off goes on.
# Extra words go to main.py:   bash run_scripts/pretrain.sh swin_l learning_rate=2e-5
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/setup.sh                                              # 1. packages: made once, then a no-op
words=$("$PYTHON" tools/choose_preset.py "$@")                           # 2. what to run; says why
source run_scripts/synthetic_data.sh                                     # 3. data: made once, then a no-op
eval "exec \"\$PYTHON\" main.py with $words"                              # 4. train, validate, show the evidence
