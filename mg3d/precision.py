"""Mixed precision: what is left out of it, and why there is one place for that.

Cosines, logits and what is centred lose more than rounding in half precision: in bfloat16 a cosine near 1 is known to 0.004, a
logit of scale 100 to 0.4.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Products within keep the precision of their inputs; kind: a device's type, also one that knows no autocast."""
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
