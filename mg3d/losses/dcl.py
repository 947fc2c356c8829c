"""DCL: disentangled contrast, of a volume and what its sentences gathered from it."""

from torch import Tensor

from mg3d.losses.base import Objective
from mg3d.losses.contrastive import contrastive_loss


class DCLLoss(Objective):
    """Symmetric InfoNCE between a volume and its sentence-wise aggregation (paper: disentangled contrast).

    Where there is a bias, the sigmoid contrast instead.

    Args:
        exclude_duplicates: rows of one patient or of one report text are no wrong answers for one another.
    """

    def __init__(self, *, exclude_duplicates: bool = True) -> None:
        super().__init__()
        self.exclude_duplicates = exclude_duplicates

    def forward(
        self,
        dcl_image_embedding: Tensor,
        dcl_aggregate_embedding: Tensor,
        dcl_logit_scale: Tensor,
        dcl_logit_bias: Tensor | None = None,
        *,
        patient_key: Tensor,
        report_key: Tensor,
    ) -> Tensor:
        """Embeddings [B, E] of length 1, scale and bias scalars, keys int64 [B]."""
        return contrastive_loss(
            dcl_image_embedding,
            dcl_aggregate_embedding,
            dcl_logit_scale,
            dcl_logit_bias,
            keys=(patient_key, report_key) if self.exclude_duplicates else (),
        )
