# Sourced by the pre-training scripts: a synthetic data set in the layouts of CT-RATE and CTRG, and its Arrow files, when $words ask
# for one (a preset on synthetic data and no data_root=...). Skips what exists. tiny: 5 mm voxels, about 2 GB. full: 2.5 mm, about 15 GB.
case " $words " in
    *" data_root="* | *" 'data_root="*) ;;
    *)
        case " $words " in
            *" full "*) synthetic=data/synthetic_full grid=146 size=128 ;;
            *) synthetic=data/synthetic grid=72 size=64 ;;
        esac
        "$PYTHON" tools/make_phantom.py --out "$synthetic" --grid "$grid"    # raw files: NIfTI, JPEG, CSV, JSON
        "$PYTHON" prepro/prepro_pretraining_data.py --ct-rate "$synthetic/ct_rate" --ctrg "$synthetic/ctrg" \
            --out "$synthetic/pretrain_arrows" --image-size "$size" --workers "$(nproc 2>/dev/null || echo 1)"    # raw files -> Arrow
        ;;
esac
