"""The folders of downstream/, loaded as a user's shell would run them."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.parent.name for path in (ROOT / "downstream").glob("*/finetune.py"))


def load(name):
    """The module of a folder."""
    word = f"downstream_{name.replace('-', '_')}"
    if word not in sys.modules:
        spec = importlib.util.spec_from_file_location(word, ROOT / "downstream" / name / "finetune.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[word] = module
        spec.loader.exec_module(module)
    return sys.modules[word]
