"""What every objective is."""

import inspect

from torch import Tensor, nn


class Objective(nn.Module):
    """A loss whose keyword arguments are names of fields of `types.Features`.

    `forward` gives this rank's share of the loss: its own terms times the number of ranks over the count of all ranks, so that
    the mean over ranks, of value and of gradient, is the exact one. With nothing to compare it is 0 and still has a graph.
    """

    @property
    def inputs(self) -> tuple[str, ...]:
        """The fields of `Features` it reads."""
        return tuple(inspect.signature(self.forward).parameters)

    def forward(self, **features: Tensor) -> Tensor:
        """The loss, a scalar."""
        raise TypeError(f"{type(self).__name__} has no forward")
