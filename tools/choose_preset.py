"""Choose what run_scripts/pretrain.sh runs, by the data and GPUs that are found.

Prints the arguments for main.py on stdout and the reason on stderr. The user's presets and settings come last, so they win.
Unknown presets or settings and an unreadable load_path are refused here, before synthetic data are generated.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mg3d.settings.presets import PRESETS

SYNTHETIC = ("tiny", "full")
"""Presets that train on synthetic data."""
ENCODERS = tuple(preset for preset, values in PRESETS.items() if "vision_encoder" in values)


def choose(arguments: Sequence[str], *, found: Sequence[str], has_gpu: bool, data_root: str) -> tuple[list[str], str]:
    """The arguments for main.py, and the reason in one sentence.

    Args:
        arguments: the user's presets and settings.
        found: data sets with a training index in `data_root`.
        has_gpu: a GPU exists and may be used.

    Raises:
        ValueError: a model that would take months without a GPU.
    """
    arguments = [argument.removeprefix("preset=") for argument in arguments]
    others = [argument for argument in arguments if argument not in SYNTHETIC]
    chosen = next((argument for argument in reversed(arguments) if argument in SYNTHETIC), None)
    encoder = next((argument for argument in reversed(arguments) if argument in ENCODERS), None)
    if chosen is None and found:
        return _on_real_data(others, found=found, has_gpu=has_gpu, data_root=data_root)
    if chosen is not None:
        roots = [argument for argument in arguments if argument.startswith("data_root=")]
        reason = f"preset {chosen} on {roots[-1] if roots else 'synthetic data'}"
    elif encoder and not has_gpu:
        raise ValueError(f"{encoder} needs a GPU and none is available; leave it out for the small model on synthetic data")
    else:
        chosen = "full" if encoder else "tiny"
        small = "the small model on the GPU (preset=full trains Swin-B)" if has_gpu else "the small model on the CPU"
        model = f"{encoder} on the GPU" if encoder else small
        reason = f"no Arrow files in {data_root}: synthetic data and {model}"
    if chosen == "full" and not has_gpu:
        raise ValueError("preset=full trains Swin-B and no GPU is available; use the preset tiny")
    return [chosen, "resume_from=auto", *others], reason


def _on_real_data(arguments: list[str], *, found: Sequence[str], has_gpu: bool, data_root: str) -> tuple[list[str], str]:
    if not has_gpu:
        raise ValueError(
            f"found Arrow files in {data_root}, but no GPU: Swin-B would take months on a CPU. Use a machine with a GPU, or the "
            "preset tiny for the small model on synthetic data"
        )
    presets = ["task_pretrain_mg3d", "swin_b", "text_radbert", f"data_root={data_root}", f"datasets={list(found)!r}"]
    reason = f"found {' and '.join(found)} in {data_root} and a GPU: Swin-B and RadBERT"
    return [*presets, "resume_from=auto", *arguments], reason


def main(arguments: Sequence[str]) -> int:
    """Prints the choice; returns the exit code."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(f"{__doc__}\nusage: python tools/choose_preset.py [PRESET ...] [NAME=VALUE ...]\npresets: {' '.join(PRESETS)}")
        return 0
    try:
        chosen, reason = _choose_here(arguments)
    except (ValueError, OSError) as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 2
    print(f"mg3d: {reason}", file=sys.stderr)
    print(shlex.join(chosen))
    return 0


def _choose_here(arguments: Sequence[str]) -> tuple[list[str], str]:
    import torch

    from mg3d.checkpoints.read import read_checkpoint
    from mg3d.config import read_arguments
    from mg3d.datasets.schema import DATASETS, index_path
    from mg3d.datasets.storage import Storage
    from mg3d.settings.schema import DataSettings

    roots = [argument.split("=", 1)[1] for argument in arguments if argument.startswith("data_root=")]
    data_root = roots[-1] if roots else DataSettings().data_root
    storage = Storage(data_root)
    found = [name for name in DATASETS if storage.has(index_path(Path(), name, "train").name)]
    if roots and not found:
        raise ValueError(f"data_root={data_root} has no clm_*_train.arrow; create it with prepro/prepro_pretraining_data.py")
    has_gpu = torch.cuda.is_available() and "accelerator=cpu" not in arguments
    chosen, reason = choose(arguments, found=found, has_gpu=has_gpu, data_root=data_root)
    run = read_arguments(chosen).run
    if run.load_path:
        read_checkpoint(run.load_path, entry=run.load_entry or None)
    return chosen, reason


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
