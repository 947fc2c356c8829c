"""Pre-training from the command line: `python main.py with task_pretrain_mg3d swin_b text_radbert data_root=...`."""

import sys

from mg3d.cli import exit_without_environment

if __name__ == "__main__":
    with exit_without_environment():
        from mg3d.config import command_line

        sys.exit(command_line(sys.argv[1:]))
