"""Exemptions from mixed precision, and library versions that compute it wrongly or slowly.

Cosines, logits and centred vectors need full precision: in bfloat16 a cosine near 1 is accurate to 0.004, a logit at scale 100 to
0.4.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Context in which products keep the precision of their inputs; kind: a device type, with or without autocast."""
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def convolution_defect(torch_version: str, cudnn_version: int | None, precision: str) -> str | None:
    """One sentence on what is known to be wrong with 3D convolutions of these versions on CUDA; None if nothing is.

    cudnn_version: as `torch.backends.cudnn.version()`, 91002 for 9.10.2; precision: of Lightning's Trainer.
    """
    if "mixed" in precision and torch_version.partition("+")[0] == "2.9.0":
        return (
            "torch 2.9.0 runs 3D convolutions in mixed precision about four times slower (pytorch issue 166122); "
            "install a later torch with cuDNN 9.15 or later"
        )
    if "bf16" in precision and cudnn_version is not None and 90800 <= cudnn_version < 91500:
        return (
            f"cuDNN {cudnn_version // 10000}.{cudnn_version // 100 % 100} may compute wrong 3D convolutions in bfloat16 "
            "(pytorch issue 163539), or torch avoids it, with more memory (166643); install cuDNN 9.15 or later"
        )
    return None
