"""`torch.compile` of the image encoder, for `compile=True`."""

import functools

import torch
from torch import Tensor

from mg3d.models.vision.registry import VisionEncoder

BACKEND = "inductor"
"""Of `torch.compile`."""


def require_compiler(device: str) -> None:
    """Raises ValueError if torch cannot compile for `device` here; compiles a small function to find out."""
    try:
        torch.compile(lambda number: number + 1, fullgraph=True, backend=BACKEND)(torch.zeros(8, device=device))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        needed = "a C++ compiler, such as g++," if device == "cpu" else "Triton and a C compiler, such as gcc,"
        raise ValueError(f"compile=True needs {needed} on this machine: {reason}; install it or use compile=False") from error


def compile_encode(vision: VisionEncoder) -> None:
    """Replaces `vision.encode` by its compiled version for passes with gradient; parameter names do not change.

    Each batch size, with and without a mask, is compiled on first use: one size in training, two with grad_cache_chunk (torch's
    limit is eight graphs). Passes without gradient stay eager, because the last validation batch has another size. Do not copy
    the encoder afterwards: the copy would use the parameters of the original.
    """
    eager = vision.encode
    compiled = torch.compile(eager, fullgraph=True, dynamic=False, backend=BACKEND)
    torch._dynamo.config.optimize_ddp = False  # it splits graphs at gradient buckets and does not support recomputation

    @functools.wraps(eager)
    def encode(volume: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        return (compiled if torch.is_grad_enabled() else eager)(volume, patch_mask)

    vision.encode = encode
