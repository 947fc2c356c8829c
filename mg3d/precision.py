"""Device and mixed precision, exemptions from it, and library versions that compute it wrongly or slowly.

Cosines, logits and centred vectors need full precision: in bfloat16 a cosine near 1 is accurate to 0.004, a logit at scale 100 to
0.4.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def find_device(name: str) -> torch.device:
    """`cpu`, `cuda`, `cuda:1` ..., or `auto`, which uses the GPU if available; ValueError if there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not available ({str(error).splitlines()[0][:80]}). Use cpu or auto.") from error
    return torch.device(name)


def resolve_precision(precision: str, device: torch.device | str) -> str:
    """`auto` resolved: bf16-mixed on GPUs that support it, 16-mixed on other GPUs, 32-true on a CPU."""
    if precision != "auto":
        return precision
    if torch.device(device).type != "cuda":
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def inference_precision(precision: str, device: torch.device, *, trained: str) -> str:
    """`precision` of an inference; `auto` is that of the training on a GPU, and float32 on a CPU."""
    return precision if precision != "auto" else trained if device.type == "cuda" else "32-true"


def autocast(precision: str, device: torch.device | str) -> AbstractContextManager[Any]:
    """Context in which a trainer of this `precision` computes."""
    dtype = _AUTOCAST.get(resolve_precision(precision, device))
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)


@contextmanager
def inference(precision: str, device: torch.device | str) -> Iterator[None]:
    """`autocast` without gradients."""
    with torch.no_grad(), autocast(precision, device):
        yield


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Context in which products keep the precision of their inputs; kind: a device type, with or without autocast."""
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def full_precision(value: Any) -> Any:
    """Tensors in half precision as float32; everything else unchanged."""
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value


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
