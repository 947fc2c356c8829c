"""Convert raw CT-RATE and CTRG-Chest folders to Arrow files for fine-tuning.

Takes the options of prepro_pretraining_data.py and writes the same kind of files. The official test set stays test; val is drawn
from the training patients. Existing Arrow files of pre-training can be used as well, unless other options are needed.
"""

import sys
from pathlib import Path

from prepro_pretraining_data import main

OUT = Path("data/finetune_arrows")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], description=__doc__, out=OUT))
