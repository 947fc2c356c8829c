#!/usr/bin/env bash
# Fine-tune on this data set; --help shows every setting. data_root=phantom: a synthetic set on the CPU.
exec bash "$(dirname "$0")/../../run_scripts/finetune.sh" "$(basename "$(dirname "$(realpath "$0")")")" "$@"
