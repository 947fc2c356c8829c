"""CML: cross-modal global alignment, the contrast of volumes and reports."""

import torch
from torch import Tensor

from mg3d.distributed import gather_rows
from mg3d.losses.base import Loss
from mg3d.losses.contrastive import ExtraNegatives, contrastive_loss


class CMLLoss(Loss):
    """Symmetric InfoNCE of volumes and reports (paper: global alignment; original: `local_itc`); sigmoid loss with a bias.

    With views of the report: the mean of the losses against whole reports and against views, which bring single sentences, such
    as prompts, into distribution.

    Rows of one patient, or with equal report or view texts, are not negatives of each other.
    """

    gathers = (
        "cml_image_embedding", "cml_report_embedding", "cml_view_embedding", "patient_key", "report_key", "view_key",
        "negative_embedding", "negative_patient_key", "negative_report_key",
    )  # fmt: skip

    def forward(
        self,
        cml_image_embedding: Tensor,
        cml_report_embedding: Tensor,
        cml_logit_scale: Tensor,
        cml_logit_bias: Tensor | None = None,
        cml_view_embedding: Tensor | None = None,
        *,
        patient_key: Tensor,
        report_key: Tensor,
        view_key: Tensor | None = None,
        negative_embedding: Tensor | None = None,
        negative_patient_key: Tensor | None = None,
        negative_report_key: Tensor | None = None,
    ) -> Tensor:
        """L2-normalised embeddings [B, E] of volumes and reports, [B, K, E] of K views.

        Scale and bias are scalars, patient_key and report_key int64 [B], view_key int64 [B, K]. negative_embedding [B, R, E]: R
        reports of other studies per row (keys int64 [B, R]), extra negatives of all volumes against whole reports.
        """
        keys = (patient_key, report_key)
        calibration = (cml_logit_scale, cml_logit_bias)
        extra = _extra_negatives(negative_embedding, negative_patient_key, negative_report_key)
        whole = contrastive_loss(cml_image_embedding, cml_report_embedding, *calibration, keys=keys, extra=extra)
        if cml_view_embedding is None:
            return whole
        views = contrastive_loss(cml_image_embedding, cml_view_embedding, *calibration, keys=(*keys, view_key))
        return 0.5 * (whole + views)


def _extra_negatives(embedding: Tensor | None, patient_key: Tensor | None, report_key: Tensor | None) -> ExtraNegatives | None:
    """The further reports of all ranks; a report that was sampled twice counts once."""
    if embedding is None:
        return None
    rows = gather_rows(embedding, patient_key, report_key)
    embedding, patient_key, report_key = (part.flatten(0, 1) for part in rows)
    return ExtraNegatives(embedding, (patient_key, report_key), _is_first_occurrence(report_key))


def _is_first_occurrence(keys: Tensor) -> Tensor:
    """bool [X]: by sorting, because X is ranks x volumes x reports."""
    order = keys.argsort(stable=True)
    is_first = torch.ones_like(keys, dtype=torch.bool)
    is_first[order[1:]] = keys[order[1:]] != keys[order[:-1]]
    return is_first
