"""Captioning: the report written from the volume, word after word."""

from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import global_mean
from mg3d.losses.base import Objective

NOT_ASKED = -100
"""Target where no word is asked for."""


class CaptionLoss(Objective):
    """Cross entropy of each next word of a report (not of the paper; the original's report generation: masked NLL).

    Args:
        smoothing: share of the target that is spread evenly over all words.
    """

    def __init__(self, *, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, captioning_logits: Tensor, captioning_targets: Tensor) -> Tensor:
        """Mean over the asked words of all ranks; logits [B, T, V], targets int64 [B, T], -100 = not asked."""
        total = F.cross_entropy(
            captioning_logits.flatten(0, 1),
            captioning_targets.flatten(),
            ignore_index=NOT_ASKED,
            label_smoothing=self.smoothing,
            reduction="sum",
        )
        return global_mean(total, (captioning_targets != NOT_ASKED).sum())
