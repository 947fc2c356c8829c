"""Device and mixed precision of training, evaluation and inference, and exemptions from mixed precision.

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
