"""What every objective is."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from mg3d.precision import without_autocast


class Objective(nn.Module):
    """A loss whose keyword arguments are names of fields of `types.Features`.

    `forward` gives this rank's share of the loss: its own terms times the number of ranks over the count of all ranks, so that
    the mean over ranks, of value and of gradient, is the exact one. With nothing to compare it is 0 and still has a graph.

    Computed in float32 at least, under autocast too: see `precision`.
    """

    def __call__(self, *features: Any, **named: Any) -> Tensor:
        """`forward` of the features in full precision."""
        given = [_in_full(value) for value in features]
        given_by_name = {name: _in_full(value) for name, value in named.items()}
        kind = next((value.device.type for value in (*given, *given_by_name.values()) if isinstance(value, Tensor)), "cpu")
        with without_autocast(kind):
            return super().__call__(*given, **given_by_name)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The fields of `Features` it reads."""
        return tuple(inspect.signature(self.forward).parameters)

    def forward(self, **features: Tensor) -> Tensor:
        """The loss, a scalar."""
        raise TypeError(f"{type(self).__name__} has no forward")


def _in_full(value: Any) -> Any:
    """A tensor of half precision, or a named tuple of such, in float32; anything else as it is."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    return type(value)(*(_in_full(part) for part in value)) if isinstance(value, tuple) else value
