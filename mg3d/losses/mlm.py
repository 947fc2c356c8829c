"""MLM: masked report modelling, guided by the volume."""

from torch import Tensor

from mg3d.distributed import global_mean
from mg3d.losses.base import Loss


class MLMLoss(Loss):
    """Cross entropy of the masked tokens (paper: context-guided report reconstruction)."""

    gathers = ("mlm_tokens",)

    def forward(self, mlm_token_loss: Tensor, mlm_tokens: Tensor) -> Tensor:
        """Mean over the masked tokens of all ranks; cross entropy [B, M], 0 at padding; number of masked tokens int64 [B]."""
        return global_mean(mlm_token_loss.sum(), mlm_tokens)
