#!/usr/bin/env bash
# Pre-train on the data and GPUs that are found:
#   no data, no GPU   synthetic CT and the small model on the CPU, about ten minutes on 2 cores
#   no data, a GPU    the same on the GPU; preset=full trains Swin-B
#   data and a GPU    Swin-B and RadBERT on data/pretrain_arrows, or data_root=...
# Prints trained against untrained results and writes result/. Run it again to resume, or to show the results.
# Presets and settings are passed to main.py:   bash run_scripts/pretrain.sh swin_l learning_rate=2e-5
# Relative paths are relative to the current folder.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/run_scripts/setup.sh"                        # 1. install packages, once
chosen=$("$PYTHON" "$root/tools/choose_preset.py" "$@")    # 2. choose presets by data and GPUs; logs the reason
source "$root/run_scripts/synthetic_data.sh"               # 3. generate synthetic data if chosen, once
eval "exec \"\$PYTHON\" \"\$root/main.py\" with $chosen"     # 4. train, validate, evaluate
