"""The volume encoder as compiled code, for `compile=True`."""

import functools

import torch
from torch import Tensor

from mg3d.models.vision.registry import VisionEncoder

BACKEND = "inductor"
"""What `torch.compile` makes of a graph: machine code."""


def require_compiler(device: str) -> None:
    """Raises ValueError when no code can be made here for `device`; compiles one small sum to find out."""
    try:
        torch.compile(lambda number: number + 1, fullgraph=True, backend=BACKEND)(torch.zeros(8, device=device))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        needed = "a C++ compiler, such as g++," if device == "cpu" else "Triton and a C compiler, such as gcc,"
        raise ValueError(f"compile=True needs {needed} on this machine: {reason}; install it, or leave compile away") from error


def compile_encode(vision: VisionEncoder) -> None:
    """Puts compiled code in the place of `vision.encode`, where a gradient is wanted; names of parameters stay.

    Each size of batch and each kind of pass, with hidden cubes or without, is compiled for itself when it first comes; training
    has one size, two with grad_cache_chunk, and torch's limit is eight graphs (64-true needs them: it computes chunks again with
    another default type). Without a gradient the encoder computes as before: the last batch of a validation has a size of its
    own, and would be waited for. A copy of the encoder that is made afterwards would call this one's parameters.
    """
    eager = vision.encode
    compiled = torch.compile(eager, fullgraph=True, dynamic=False, backend=BACKEND)
    torch._dynamo.config.optimize_ddp = False  # would cut the graph where gradients are sent; refuses what is computed again

    @functools.wraps(eager)
    def encode(volume: Tensor, hidden: Tensor | None = None) -> Tensor:
        return (compiled if torch.is_grad_enabled() else eager)(volume, hidden)

    vision.encode = encode
