"""SAL: alignment of the sentences recovered from a masked report with the true ones."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import global_mean
from mg3d.losses.base import Objective


class SALLoss(Objective):
    """1 - cosine between recovered and true sentence features.

    Args:
        per: "sentence", a mean over sentences; "patient", a sum over sentences per patient, so that its weight grows with the
            length of the report (released).
    """

    def __init__(self, per: Literal["sentence", "patient"] = "sentence") -> None:
        super().__init__()
        self.per = per

    def forward(self, sal_prediction: Tensor, sal_target: Tensor, sentence_mask: Tensor) -> Tensor:
        """Prediction and target [B, S, d'], sentence_mask bool [B, S], True = real sentence."""
        gap = 1 - F.cosine_similarity(sal_prediction, sal_target, dim=-1, eps=1e-6)
        total = torch.where(sentence_mask, gap, 0.0).sum()
        count = sentence_mask.sum() if self.per == "sentence" else torch.tensor(len(sentence_mask), device=gap.device)
        return global_mean(total, count)
