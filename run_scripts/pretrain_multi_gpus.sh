#!/usr/bin/env bash
# Pre-train with one process per GPU of this node; see pretrain.sh for data, resuming and settings.
#   bash run_scripts/pretrain_multi_gpus.sh                             all GPUs
#   bash run_scripts/pretrain_multi_gpus.sh devices=4 batch_size=64     four GPUs
#   bash run_scripts/pretrain_multi_gpus.sh devices=2 accelerator=cpu   two CPU processes, for testing
set -euo pipefail
source "$(dirname "$0")/pretrain.sh"
