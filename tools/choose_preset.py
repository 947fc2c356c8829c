"""Say what `run_scripts/pretrain.sh` will run, and why, by what is found here: data or none, GPU or none.

Prints the words for `main.py` on stdout and the reason on stderr. Words of the user are kept and come last, so they win.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mg3d.settings.schema import DataSettings

SMALL_OR_FULL = ("tiny", "full")


def choose(words: Sequence[str], *, has_data: bool, has_gpu: bool, data_root: str) -> tuple[list[str], str]:
    """The words for main.py and one sentence that says why.

    Raises:
        ValueError: real data and no GPU, where the paper's model would take months.
    """
    words = ["resume_from=auto", *(word.removeprefix("preset=") for word in words)]
    asked = [word for word in words if word in SMALL_OR_FULL]
    if asked:
        rest = [word for word in words if word not in SMALL_OR_FULL]
        return [asked[-1], *rest], f"preset {asked[-1]}, as asked, on synthetic data"
    if has_data and has_gpu:
        real = ["task_pretrain_mg3d", "swin_b", "text_radbert", f"data_root={data_root}"]
        return [*real, *words], f"found Arrow files in {data_root} and a GPU: Swin-B and RadBERT on your data"
    if has_data:
        raise ValueError(
            f"found Arrow files in {data_root} but no GPU, and Swin-B would take months on a CPU: "
            "use a GPU machine, or add the word tiny for the small model on synthetic data"
        )
    where = "on the GPU (preset=full trains Swin-B on it)" if has_gpu else "on the CPU"
    return ["tiny", *words], f"found no Arrow files in {data_root}: synthetic data and the small model, {where}"


def main(arguments: Sequence[str]) -> int:
    """Prints the choice; returns the exit code."""
    roots = [word.split("=", 1)[1] for word in arguments if word.startswith("data_root=")]
    data_root = roots[-1] if roots else DataSettings().data_root
    has_data = any(Path(data_root).glob("clm_*_train.arrow"))
    if roots and not has_data:
        print(
            f"mg3d: data_root={data_root} holds no clm_*_train.arrow; make them with prepro/prepro_pretraining_data.py",
            file=sys.stderr,
        )
        return 2
    try:
        words, why = choose(arguments, has_data=has_data, has_gpu=torch.cuda.is_available(), data_root=data_root)
    except ValueError as error:
        print(f"mg3d: {error}", file=sys.stderr)
        return 2
    print(f"mg3d: {why}", file=sys.stderr)
    print(shlex.join(words))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
