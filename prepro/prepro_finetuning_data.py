"""Raw CT-RATE and CTRG folders -> Arrow files for fine-tuning: the pre-training preparation, into a folder of its own.

Takes every option of prepro_pretraining_data.py. Official test parts stay as they are; val is carved out of train by patient.
Arrow files of pre-training serve as well: the two differ only where other options are given.
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

OUT = "data/finetune_arrows"


def with_folder(arguments: Sequence[str]) -> list[str]:
    """The command line with `--out OUT` where it names no folder."""
    named = any(word == "--out" or word.startswith("--out=") for word in arguments)
    return [*arguments] if named else [*arguments, "--out", OUT]


if __name__ == "__main__":
    preparation = runpy.run_path(str(Path(__file__).with_name("prepro_pretraining_data.py")))
    sys.exit(preparation["main"](with_folder(sys.argv[1:])))
