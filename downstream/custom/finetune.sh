#!/usr/bin/env bash
# Fine-tune on this data set; --help lists the settings. data_root=phantom: synthetic data, on a CPU.
exec bash "$(dirname "$0")/../../run_scripts/finetune.sh" "$(basename "$(dirname "$(realpath "$0")")")" "$@"
