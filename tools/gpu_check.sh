#!/usr/bin/env bash
# Measure mg3d on a GPU in at most 8 minutes: encoder and step against MONAI, Swin-B beside ViT-B and U-Net, MFU, waits, data
# loading, pre-training, fine-tuning. A check that fails is named with its last line of output, and the next one starts.
#   bash tools/gpu_check.sh [FOLDER]           results in FOLDER (default: result/gpu_check); run it again to repeat failed checks only
#   bash tools/gpu_check.sh --quick [FOLDER]   tiny sizes on the CPU, to see that every check runs; the times mean nothing
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/run_scripts/setup.sh"
quick=""
if [ "${1:-}" = --quick ]; then quick=--quick; shift; fi
folder=$(realpath -m "${1:-result/gpu_check}")
mkdir -p "$folder"
cd "$root"
if [ -n "$quick" ]; then
    device=(--quick) training=(tiny accelerator=cpu max_steps=4 warmup_steps=1) patients=12 grid=72 size=64 sets=(stoic2021)
elif "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
    device=(--device cuda --precision bf16 --repeats 1) training=(full text_tiny freeze_text=False max_minutes=2 val_interval=100000)
    patients=64 grid=146 size=128 sets=(MSD stoic2021 Luna16 CTRG)
else
    echo "mg3d: no GPU is available to PyTorch; --quick runs tiny checks on the CPU" >&2
    exit 2
fi

failed=0
if [ -n "$quick" ]; then BUDGET=3600; else BUDGET=480; fi     # seconds of all checks
check() {                                                   # NAME SECONDS COMMAND: one check; NAME.log, and NAME.done when it passed
    local name=$1 limit=$2 start=$SECONDS code=0 left=$((BUDGET - SECONDS))
    shift 2
    if [ -e "$folder/$name.done" ]; then return; fi
    if [ "$left" -lt 10 ]; then echo "== $name: not started, the time is over; run the script again"; failed=1; return; fi
    echo "== $name"
    timeout -k 10 $((limit < left ? limit : left)) "$@" >"$folder/$name.log" 2>&1 </dev/null || code=$?
    if [ "$code" -eq 1 ] && [ -e "$folder/$name.json" ]; then code=0; fi   # measured, but a target was missed
    case $code in
        0) echo $((SECONDS - start)) >"$folder/$name.done" ;;
        124 | 137) failed=1; echo "   stopped after $((SECONDS - start)) s; see $folder/$name.log" ;;
        *) failed=1; echo "   failed: $(grep -v '^[[:space:]]*$' "$folder/$name.log" | tail -n 1 | cut -c 1-300); see $folder/$name.log" ;;
    esac
}

benchmark() { [ -e "$folder/$1.done" ] || rm -f "$folder/$1.json"; check "$1" 150 "$PYTHON" tools/benchmark.py "$@" "${device[@]}" --json "$folder/$1.json"; }

benchmark encoder --size 128 128 128
benchmark architectures --size 128 128 128
benchmark step --batch 8
benchmark loader --step-ms 250 --workers 8
benchmark planner
arrows=$folder/data/arrows
check phantom 150 "$PYTHON" tools/make_phantom.py --out "$folder/data" --grid "$grid" --workers "$(nproc)" \
    --train-patients "$patients" --valid-patients 12 --ctrg-cases 12
check arrows 100 "$PYTHON" prepro/prepro_pretraining_data.py --ct-rate "$folder/data/ct_rate" --out "$arrows" \
    --image-size "$size" --workers "$(nproc)"
check pretraining 240 "$PYTHON" main.py with "${training[@]}" data_root="$arrows" datasets='["ct_rate"]' evidence=False \
    log_dir="$folder" run_name=pretraining resume_from=auto
for set in "${sets[@]}"; do
    check "finetune_$set" 60 "$PYTHON" "downstream/$set/finetune.py" data_root=phantom max_cases=4 epochs=1 warmup_epochs=0 \
        log_dir="$folder/finetune" run_name="$set"
done

"$PYTHON" - "$folder" <<'PY'
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

folder = Path(sys.argv[1])
table = Table("check", "measured", "mg3d", "compared with", "ratio")
for log in sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime):
    done = log.with_suffix(".done")
    seconds = f"{done.read_text().strip()} s" if done.exists() else f"FAILED, see {log}"
    table.add_row(log.stem, "whole check", seconds, "", "")
    rows = log.with_suffix(".json")
    for row in json.loads(rows.read_text())["rows"] if rows.exists() else []:
        ours, theirs = (f"{row[side + '_cost']:.3g} {row['unit']}" for side in ("candidate", "baseline"))
        table.add_row("", row["name"], ours, f"{row['baseline']}: {theirs}", f"{row['ratio']:.2f}")
Console(width=None if sys.stdout.isatty() else 140).print(table)
PY
exit "$failed"
