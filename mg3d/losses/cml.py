"""CML: cross-modal global alignment, the contrast of volumes and reports."""

from torch import Tensor

from mg3d.losses.base import Objective
from mg3d.losses.contrastive import contrast


class CMLLoss(Objective):
    """Symmetric InfoNCE between what a volume and its report say (paper: global alignment; original: `local_itc`).

    Where there is a bias, the sigmoid contrast instead.

    With views of the report, the mean of two contrasts: with the whole report, and with the views. Views bring the single
    sentences of prompts into distribution.

    Args:
        exclude_duplicates: rows of one patient, of one report text or of one view's text are no wrong answers for one another.
    """

    def __init__(self, *, exclude_duplicates: bool = True) -> None:
        super().__init__()
        self.exclude_duplicates = exclude_duplicates

    def forward(
        self,
        cml_first_embedding: Tensor,
        cml_second_embedding: Tensor,
        cml_view_embedding: Tensor | None,
        cml_logit_scale: Tensor,
        cml_logit_bias: Tensor | None = None,
        *,
        patient_key: Tensor,
        report_key: Tensor,
        view_key: Tensor,
    ) -> Tensor:
        """Embeddings [B, E] of length 1 (mg3d: image, report; released: fused, plain) and of K views [B, K, E].

        Scale and bias scalars, patient_key and report_key int64 [B], view_key int64 [B, K].
        """
        keys = (patient_key, report_key) if self.exclude_duplicates else ()
        calibration = (cml_logit_scale, cml_logit_bias)
        whole = contrast(cml_first_embedding, cml_second_embedding, *calibration, keys=keys)
        if cml_view_embedding is None:
            return whole
        keys += (view_key,) if self.exclude_duplicates else ()
        return 0.5 * (whole + contrast(cml_first_embedding, cml_view_embedding, *calibration, keys=keys))
