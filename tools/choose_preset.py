"""Say what `run_scripts/pretrain.sh` will run, and why, by what is found here: data or none, GPU or none.

Prints the words for `main.py` on stdout and the reason on stderr. Words of the user are kept and come last, so they win.
A word or a setting that nobody knows, and a load_path that is no file of weights, are refused here, before data are made.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mg3d.checkpoints.read import read_checkpoint
from mg3d.config import read_arguments
from mg3d.datasets.schema import DATASETS, index_path
from mg3d.datasets.storage import Storage
from mg3d.settings.presets import PRESETS
from mg3d.settings.schema import DataSettings

SYNTHETIC = ("tiny", "full")
ENCODERS = tuple(word for word, values in PRESETS.items() if "vision_encoder" in values)


def choose(words: Sequence[str], *, found: Sequence[str], has_gpu: bool, data_root: str) -> tuple[list[str], str]:
    """The words for main.py and one sentence that says why.

    Args:
        words: the user's.
        found: data sets whose training file is in `data_root`.
        has_gpu: a GPU is there and may be used.
        data_root: where Arrow files were looked for.

    Raises:
        ValueError: a model that would take months without a GPU.
    """
    words = [word.removeprefix("preset=") for word in words]
    rest = [word for word in words if word not in SYNTHETIC]
    asked = next((word for word in reversed(words) if word in SYNTHETIC), None)
    encoder = next((word for word in reversed(words) if word in ENCODERS), None)
    own_data = [word for word in words if word.startswith("data_root=")]
    if asked is None and found:
        return _on_own_data(rest, found=found, has_gpu=has_gpu, data_root=data_root)
    if asked is None and encoder and has_gpu:
        asked, why = "full", f"found no Arrow files in {data_root}: synthetic data and {encoder} on the GPU"
    elif asked is None and encoder:
        raise ValueError(
            f"{encoder} needs a GPU, and none is usable here; leave the word out for the small model on synthetic data"
        )
    elif asked is None:
        where = "on the GPU (preset=full trains Swin-B on it)" if has_gpu else "on the CPU"
        asked, why = "tiny", f"found no Arrow files in {data_root}: synthetic data and the small model, {where}"
    else:
        why = f"preset {asked}, as asked, on {own_data[-1] if own_data else 'synthetic data'}"
    if asked == "full" and not has_gpu:
        raise ValueError("preset=full trains Swin-B, and no GPU is usable here; use the word tiny for the small model")
    return [asked, "resume_from=auto", *rest], why


def _on_own_data(words: list[str], *, found: Sequence[str], has_gpu: bool, data_root: str) -> tuple[list[str], str]:
    if not has_gpu:
        raise ValueError(
            f"found Arrow files in {data_root} but no usable GPU, and Swin-B would take months on a CPU: "
            "use a GPU machine, or add the word tiny for the small model on synthetic data"
        )
    real = ["task_pretrain_mg3d", "swin_b", "text_radbert", f"data_root={data_root}", f"datasets={list(found)!r}"]
    why = f"found {' and '.join(found)} in {data_root} and a GPU: Swin-B and RadBERT on your data"
    return [*real, "resume_from=auto", *words], why


def main(arguments: Sequence[str]) -> int:
    """Prints the choice; returns the exit code."""
    if any(word in ("-h", "--help") for word in arguments):
        print(f"{__doc__}\nusage: python tools/choose_preset.py [WORD ...] [name=value ...]\nwords: {' '.join(PRESETS)}")
        return 0
    roots = [word.split("=", 1)[1] for word in arguments if word.startswith("data_root=")]
    data_root = roots[-1] if roots else DataSettings().data_root
    try:
        there = Storage(data_root)
        found = [name for name in DATASETS if there.has(index_path(Path(), name, "train").name)]
    except (ValueError, OSError) as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 2
    if roots and not found:
        print(
            f"mg3d: data_root={data_root} holds no clm_*_train.arrow; make them with prepro/prepro_pretraining_data.py",
            file=sys.stderr,
        )
        return 2
    has_gpu = torch.cuda.is_available() and "accelerator=cpu" not in arguments
    try:
        words, why = choose(arguments, found=found, has_gpu=has_gpu, data_root=data_root)
        start = read_arguments(words).run
        if start.load_path:
            read_checkpoint(start.load_path, entry=start.load_entry or None)
    except (ValueError, OSError) as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 2
    print(f"mg3d: {why}", file=sys.stderr)
    print(shlex.join(words))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
