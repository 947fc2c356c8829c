"""Exemptions from mixed precision.

Cosines, logits and centred vectors need full precision: in bfloat16 a cosine near 1 is accurate to 0.004, a logit at scale 100 to
0.4.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Context in which products keep the precision of their inputs; kind: a device type, with or without autocast."""
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
