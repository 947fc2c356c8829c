"""CML: cross-modal global alignment, the contrast of volumes and reports."""

import torch
from torch import Tensor

from mg3d.distributed import gather_rows
from mg3d.losses.base import Objective
from mg3d.losses.contrastive import More, Others, contrast
from mg3d.types import QueueRows


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
        negative_embedding: Tensor | None = None,
        negative_patient_key: Tensor | None = None,
        negative_report_key: Tensor | None = None,
        queue: QueueRows | None = None,
    ) -> Tensor:
        """Embeddings [B, E] of length 1 (mg3d: image, report; released: fused, plain) and of K views [B, K, E].

        Scale and bias scalars, patient_key and report_key int64 [B], view_key int64 [B, K]. More wrong answers for the contrast
        with the whole report: negative_embedding [B, R, E] of R further reports per row (keys int64 [B, R]), and the queue's.
        """
        keys = (patient_key, report_key) if self.exclude_duplicates else ()
        calibration = (cml_logit_scale, cml_logit_bias)
        more = _wrong_answers((negative_embedding, negative_patient_key, negative_report_key), queue)
        whole = contrast(cml_first_embedding, cml_second_embedding, *calibration, keys=keys, more=more)
        if cml_view_embedding is None:
            return whole
        keys += (view_key,) if self.exclude_duplicates else ()
        return 0.5 * (whole + contrast(cml_first_embedding, cml_view_embedding, *calibration, keys=keys))


def _wrong_answers(negatives: tuple[Tensor | None, Tensor | None, Tensor | None], queue: QueueRows | None) -> More:
    """Reports of all ranks' negatives and of the queue for the volumes, volumes of the queue for the reports."""
    images, reports = [], []
    if negatives[0] is not None:
        vectors, *keys = (gather_rows(part.flatten(0, 1)) for part in negatives)
        reports.append(Others(vectors, tuple(keys), _is_first_of_its_text(keys[1])))
    if queue is not None:
        keys, is_there = (queue.patient_key, queue.report_key), queue.is_there
        images.append(Others(queue.image_embedding, keys, is_there))
        reports.append(Others(queue.report_embedding, keys, is_there))
    return More(*(_joined(parts) for parts in (images, reports)))


def _is_first_of_its_text(keys: Tensor) -> Tensor:
    """bool [X]: a report that was drawn twice is one wrong answer. By sorting, for X is ranks x volumes x reports."""
    order = keys.argsort(stable=True)
    is_first = torch.ones_like(keys, dtype=torch.bool)
    is_first[order[1:]] = keys[order[1:]] != keys[order[:-1]]
    return is_first


def _joined(parts: list[Others]) -> Others | None:
    if not parts:
        return None
    keys = tuple(torch.cat(each) for each in zip(*(part.keys for part in parts), strict=True))
    vectors = torch.cat([part.vectors.to(parts[0].vectors.dtype) for part in parts])
    return Others(vectors, keys, torch.cat([part.is_there for part in parts]))
