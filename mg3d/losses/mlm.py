"""MLM: masked report modelling, guided by the volume."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import global_mean
from mg3d.losses.base import Objective


class MLMLoss(Objective):
    """Cross entropy at the words that were asked for (paper: context-guided report reconstruction)."""

    def forward(self, mlm_logits: Tensor, mlm_targets: Tensor) -> Tensor:
        """Mean over the M asked words of all ranks; logits [M, V], targets int64 [M]."""
        total = F.cross_entropy(mlm_logits, mlm_targets, reduction="sum")
        return global_mean(total, torch.tensor(len(mlm_targets), device=total.device))
