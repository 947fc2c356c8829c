"""mg3d: multi-grained 3D medical vision-language pre-training on chest CT and radiology reports.

`mg3d.from_pretrained` (also `mg3d.load`), `mg3d.save_pretrained`, `mg3d.load_weights` and `mg3d.inspect_checkpoint` are
imported when they are first asked for, so that `import mg3d` stays cheap.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load": ("export", "from_pretrained"),
    "from_pretrained": ("export", "from_pretrained"),
    "save_pretrained": ("export", "save_pretrained"),
    "load_weights": ("load", "load_weights"),
    "inspect_checkpoint": ("inspect", "inspect_checkpoint"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mg3d' has no attribute {name!r}")
    module, function = _LAZY[name]
    return getattr(import_module(f"mg3d.checkpoints.{module}"), function)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
