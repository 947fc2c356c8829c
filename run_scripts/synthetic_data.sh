# Sourced by the pre-training scripts: generates the synthetic data set of the presets in $chosen (CT-RATE and CTRG layout) and its
# Arrow files, unless data_root is given. Existing data are kept. tiny: 5 mm voxels, about 2 GB. full: 2.5 mm voxels, about 15 GB.
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
