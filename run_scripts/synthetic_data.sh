#!/usr/bin/env bash
# Generate the synthetic data set of the presets (CT-RATE and CTRG layout) and its Arrow files. Existing data are kept.
#   bash run_scripts/synthetic_data.sh         data/synthetic: 5 mm voxels, about 2 GB
#   bash run_scripts/synthetic_data.sh full    data/synthetic_full: 2.5 mm voxels, about 15 GB
# The pre-training scripts source it; with data_root=... among the settings it generates nothing.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then                  # started directly: generate the data, train nothing
    set -euo pipefail
    root=$(cd "$(dirname "$0")/.." && pwd)
    source "$root/run_scripts/setup.sh"
    chosen="$*"
fi
case " $chosen " in
    *" data_root="* | *" 'data_root="*) ;;
    *)
        case " $chosen " in
            *" full "*) synthetic=data/synthetic_full grid=146 size=128 ;;
            *) synthetic=data/synthetic grid=72 size=64 ;;
        esac
        "$PYTHON" "$root/tools/make_phantom.py" --out "$synthetic" --grid "$grid"    # NIfTI, JPEG, CSV, JSON
        "$PYTHON" "$root/prepro/prepro_pretraining_data.py" --ct-rate "$synthetic/ct_rate" --ctrg "$synthetic/ctrg" \
            --out "$synthetic/pretrain_arrows" --image-size "$size" --workers "$(nproc 2>/dev/null || echo 1)"
        ;;
esac
