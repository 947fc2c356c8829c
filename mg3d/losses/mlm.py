"""MLM: masked report modelling, guided by the volume."""

import torch
from torch import Tensor

from mg3d.distributed import global_mean
from mg3d.losses.base import Objective


class MLMLoss(Objective):
    """Cross entropy at the words that were asked for (paper: context-guided report reconstruction)."""

    def forward(self, mlm_surprise: Tensor) -> Tensor:
        """Mean over the asked words of all ranks; [M], the cross entropy at each of this rank's."""
        return global_mean(mlm_surprise.sum(), torch.tensor(len(mlm_surprise), device=mlm_surprise.device))
