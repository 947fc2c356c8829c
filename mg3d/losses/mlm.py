"""MLM: masked report modelling, guided by the volume."""

from torch import Tensor

from mg3d.distributed import global_mean
from mg3d.losses.base import Loss


class MLMLoss(Loss):
    """Cross entropy of the masked tokens (paper: context-guided report reconstruction)."""

    def forward(self, mlm_token_loss: Tensor) -> Tensor:
        """Mean over the masked tokens of all ranks, of the cross entropy [M] of each token of this rank."""
        return global_mean(mlm_token_loss.sum(), len(mlm_token_loss))
