"""Captioning: next-token prediction of the report, given the volume."""

from torch import Tensor

from mg3d.distributed import global_mean
from mg3d.losses.base import Loss

IGNORE_INDEX = -100
"""Target of padding."""


class CaptionLoss(Loss):
    """Cross entropy of every next token (not in the paper; the published report generation: masked NLL)."""

    gathers = ("captioning_tokens",)

    def forward(self, captioning_loss: Tensor, captioning_tokens: Tensor) -> Tensor:
        """Mean over the real tokens of all ranks; sum of the cross entropies of each report [B], number of tokens int64 [B]."""
        return global_mean(captioning_loss.sum(), captioning_tokens)
