"""DCL: disentangled contrast of a volume and what its sentences gather from it."""

from torch import Tensor

from mg3d.losses.base import Loss
from mg3d.losses.contrastive import contrastive_loss


class DCLLoss(Loss):
    """Symmetric InfoNCE between a volume and its sentence-wise aggregation (paper: disentangled contrast); sigmoid with a bias.

    Rows of one patient or with equal report texts are not negatives of each other.
    """

    gathers = ("dcl_image_embedding", "dcl_aggregate_embedding", "patient_key", "report_key")

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
        """L2-normalised embeddings [B, E], scalar scale and bias, keys int64 [B]."""
        embeddings = (dcl_image_embedding, dcl_aggregate_embedding)
        return contrastive_loss(*embeddings, dcl_logit_scale, dcl_logit_bias, keys=(patient_key, report_key))
