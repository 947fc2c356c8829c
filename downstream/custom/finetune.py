"""Any table of scans; see README.md."""

import sys

from mg3d.finetune.custom import TASK, build, read_cases, resolve
from mg3d.finetune.run import run

__all__ = ["TASK", "build", "read_cases", "resolve"]

if __name__ == "__main__":
    sys.exit(run(TASK, sys.argv[1:]))
