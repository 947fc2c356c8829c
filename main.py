"""Pre-training from the command line: `python main.py with task_pretrain_mg3d swin_b text_radbert data_root=...`."""

import sys

try:
    from mg3d.config import command_line
except ModuleNotFoundError as error:
    sys.exit(f"mg3d: no module named {error.name}; run_scripts/pretrain.sh creates the environment: source .venv/bin/activate")

if __name__ == "__main__":
    sys.exit(command_line(sys.argv[1:]))
