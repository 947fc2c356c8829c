"""SAL: alignment of sentences recovered from a masked report with the true ones."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import global_mean
from mg3d.losses.base import Loss


class SALLoss(Loss):
    """1 - cosine between recovered and true sentence features."""

    gathers = ("sentence_mask",)

    def forward(self, sal_prediction: Tensor, sal_target: Tensor, sentence_mask: Tensor) -> Tensor:
        """Mean over the sentences of all ranks; prediction and target [B, S, d'], sentence_mask bool [B, S]."""
        return global_mean(self.total(sal_prediction, sal_target, sentence_mask), sentence_mask)

    @staticmethod
    def total(prediction: Tensor, target: Tensor, sentence_mask: Tensor) -> Tensor:
        """Sum over the sentences of this rank."""
        return torch.where(sentence_mask, 1 - F.cosine_similarity(prediction, target, dim=-1, eps=1e-6), 0.0).sum()
