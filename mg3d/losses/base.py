"""Base class of the losses."""

import inspect
from typing import Any, ClassVar

from torch import Tensor, nn

from mg3d.precision import full_precision, without_autocast


class Loss(nn.Module):
    """A loss whose keyword arguments are names of features (`types.Features`, or those of a branch).

    `forward` returns this rank's part: its own sum times the number of ranks over the count of all ranks, so that the mean over
    ranks, of value and gradient, is exact. Without anything to compare it is 0 and still has a graph.

    Computed in float32 or float64, under autocast too: see `mg3d.precision`.
    """

    def __call__(self, *features: Any, **named: Any) -> Tensor:
        """`forward` of the features in full precision."""
        features = [full_precision(value) for value in features]
        named = {name: full_precision(value) for name, value in named.items()}
        tensors = (value for value in (*features, *named.values()) if isinstance(value, Tensor))
        with without_autocast(next((tensor.device.type for tensor in tensors), "cpu")):
            return super().__call__(*features, **named)

    gathers: ClassVar[tuple[str, ...]] = ()
    """Names of the features that `forward` gathers from all ranks, so that all losses of a step share one collective."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the features it reads."""
        return tuple(inspect.signature(self.forward).parameters)

    def forward(self, **features: Tensor) -> Tensor:
        """The loss, a scalar."""
        raise NotImplementedError
