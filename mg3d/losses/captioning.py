"""Captioning: next-token prediction of the report, given the volume."""

from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import global_mean
from mg3d.losses.base import Loss

IGNORE_INDEX = -100
"""Target of padding."""


class CaptionLoss(Loss):
    """Cross entropy of every next token (not in the paper; the published report generation: masked NLL).

    Args:
        label_smoothing: fraction of the target that is spread evenly over the vocabulary.
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, captioning_logits: Tensor, captioning_targets: Tensor) -> Tensor:
        """Mean over the real tokens of all ranks; logits [B, T, V], targets int64 [B, T], -100 = ignored."""
        total = F.cross_entropy(
            captioning_logits.flatten(0, 1),
            captioning_targets.flatten(),
            ignore_index=IGNORE_INDEX,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return global_mean(total, (captioning_targets != IGNORE_INDEX).sum(1))
