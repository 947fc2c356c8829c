"""Pre-training from the command line: `python main.py with task_pretrain_mg3d swin_b text_radbert data_root=...`."""

import sys

from mg3d.config import command_line

if __name__ == "__main__":
    sys.exit(command_line(sys.argv[1:]))
