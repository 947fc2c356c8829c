"""Base class of the branches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from mg3d.losses.base import Loss
from mg3d.models.text.encoder import TextEncoder
from mg3d.models.tokens import SharedTokens
from mg3d.settings.schema import ModelSettings

if TYPE_CHECKING:
    from mg3d.models.mg3d import MG3D


class Branch(nn.Module):
    """Heads and losses of some objectives.

    A subclass builds in its constructor only what the active objectives need, so that every parameter receives a gradient, and
    fills `objective_losses`, whose keyword arguments are names of features.

    Args:
        model: the encoders; their widths and shapes are read, no reference is stored.
        settings: of the model.
        objectives: the active objectives that this branch computes.
    """

    name: ClassVar[str]
    """Key in `MG3D.branches`, and so in the names of parameters."""

    def __init__(self, model: MG3D, settings: ModelSettings, objectives: Iterable[str]) -> None:
        super().__init__()
        self.objectives = frozenset(objectives)
        self.objective_losses: Mapping[str, Loss] = nn.ModuleDict()

    @property
    def gathers(self) -> set[str]:
        """Names of the features that its losses gather from all ranks."""
        return {name for loss in self.objective_losses.values() for name in loss.gathers}

    def features(self, tokens: SharedTokens) -> dict[str, Tensor]:
        """Inputs of the losses. Patients are computed independently, so that GradCache can process a batch in chunks."""
        raise NotImplementedError

    def losses(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Objective -> loss over all ranks (this rank's part, see `mg3d.distributed`), from the features of the whole batch."""
        losses = self.objective_losses.items()
        return {name: loss(**{key: features[key] for key in loss.inputs if key in features}) for name, loss in losses}

    def update_ema(self, text: TextEncoder) -> None:
        """Called after every optimizer step; updates target encoders by exponential moving average."""
