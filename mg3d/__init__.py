"""mg3d: multi-grained 3D medical vision-language pre-training on chest CT and radiology reports.

`mg3d.load` loads a trained model for inference (docs/inference.md). `mg3d.from_pretrained`, `mg3d.save_pretrained`,
`mg3d.load_weights` and `mg3d.inspect_checkpoint` handle weights (docs/checkpoints.md). All are imported on first use, so that
`import mg3d` is fast.
"""

import getpass
import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load": "inference.load",
    "from_pretrained": "checkpoints.pretrained",
    "save_pretrained": "checkpoints.pretrained",
    "load_weights": "checkpoints.load",
    "inspect_checkpoint": "checkpoints.info",
}

try:
    getpass.getuser()
except (KeyError, OSError):  # a container's user id without a name, for which importing MONAI and torch.compile would fail
    os.environ["LOGNAME"] = f"uid-{os.getuid()}"


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mg3d' has no attribute {name!r}")
    return getattr(import_module(f"mg3d.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
