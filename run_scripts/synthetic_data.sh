# Sourced by the pre-training scripts: a synthetic data set in the layouts of CT-RATE and CTRG, and its Arrow files. Skips what exists.
synthetic=data/synthetic
"$PYTHON" tools/make_phantom.py --out "$synthetic"                       # raw files: NIfTI, JPEG, CSV, JSON
case " $words " in *" full "*) size=128 ;; *) size=64 ;; esac
"$PYTHON" prepro/prepro_pretraining_data.py --ct-rate "$synthetic/ct_rate" --ctrg "$synthetic/ctrg" \
    --out "$synthetic/pretrain_arrows" --image-size "$size" --workers "$(nproc 2>/dev/null || echo 1)"               # raw files -> Arrow
