"""The folders of downstream/ and the programs of prepro/, loaded as a user's shell would run them."""

import runpy
import sys
from pathlib import Path

from mg3d.finetune.task import load_task

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.parent.name for path in (ROOT / "downstream").glob("*/finetune.py"))


def load(name):
    """The module of a folder."""
    return sys.modules[load_task(ROOT / "downstream", name).read_cases.__module__]


def script(name):
    """The names that a program of prepro/ defines."""
    return runpy.run_path(str(ROOT / "prepro" / f"{name}.py"))
