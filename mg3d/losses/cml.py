"""CML: cross-modal global alignment, the contrast of volumes and whole reports."""

from torch import Tensor

from mg3d.losses.base import Objective
from mg3d.losses.contrastive import symmetric_info_nce


class CMLLoss(Objective):
    """Symmetric InfoNCE between what a volume and its report say (paper: global alignment; original: `local_itc`).

    Args:
        exclude_duplicates: rows of one patient, of one report text or with one contrasted text (see `Batch.contrast_ids`) are no
            wrong answers for one another.
    """

    def __init__(self, *, exclude_duplicates: bool = True) -> None:
        super().__init__()
        self.exclude_duplicates = exclude_duplicates

    def forward(
        self,
        cml_first_embedding: Tensor,
        cml_second_embedding: Tensor,
        cml_logit_scale: Tensor,
        *,
        patient_key: Tensor,
        report_key: Tensor,
        view_key: Tensor,
    ) -> Tensor:
        """Embeddings [B, E] of length 1 (mg3d: image, report; released: fused, plain), scale a scalar, keys int64 [B]."""
        return symmetric_info_nce(
            cml_first_embedding,
            cml_second_embedding,
            cml_logit_scale,
            keys=(patient_key, report_key, view_key) if self.exclude_duplicates else (),
        )
