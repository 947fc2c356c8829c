"""Losses as the published code computes them, for wiring=released and wiring=intended."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import global_mean
from mg3d.losses.base import Loss
from mg3d.losses.contrastive import contrastive_loss
from mg3d.losses.sal import SALLoss

LOGIT_SCALE = 10.0
"""1 / temperature (0.1)."""


class ReleasedSALLoss(SALLoss):
    """Sum over sentences per patient, so that the weight grows with the length of the report."""

    def forward(self, sal_prediction: Tensor, sal_target: Tensor, sentence_mask: Tensor) -> Tensor:
        """Mean over the patients of all ranks; prediction and target [B, S, d'], sentence_mask bool [B, S]."""
        return global_mean(self.total(sal_prediction, sal_target, sentence_mask), len(sentence_mask))


class ReleasedCMLLoss(Loss):
    """InfoNCE between fused and unfused embeddings at a constant scale; duplicates are negatives."""

    gathers = ("cml_multimodal_embedding", "cml_unimodal_embedding")

    def forward(self, cml_multimodal_embedding: Tensor, cml_unimodal_embedding: Tensor) -> Tensor:
        """L2-normalised embeddings [B, E]."""
        return contrastive_loss(cml_multimodal_embedding, cml_unimodal_embedding, LOGIT_SCALE)


class ReleasedDCLLoss(Loss):
    """InfoNCE between fused image and aggregation at a constant scale; duplicates are negatives."""

    gathers = ("dcl_image_embedding", "dcl_aggregate_embedding")

    def forward(self, dcl_image_embedding: Tensor, dcl_aggregate_embedding: Tensor) -> Tensor:
        """L2-normalised embeddings [B, E]."""
        return contrastive_loss(dcl_image_embedding, dcl_aggregate_embedding, LOGIT_SCALE)


class ReleasedSSMLoss(Loss):
    """Mean over pairs of patients of this rank, each the mean over all its sentence pairs, ignored ones included.

    Args:
        same_above, differ_below: see `SSMLoss`.
    """

    def __init__(self, *, same_above: float = 0.9, differ_below: float = 0.6) -> None:
        super().__init__()
        self.same_above, self.differ_below = same_above, differ_below

    def forward(self, ssm_visual: Tensor, ssm_text: Tensor, sentence_mask: Tensor) -> Tensor:
        """Visual side [B, S, 128], text side [B, S, d''], mask bool [B, S]."""
        visual, text = F.normalize(ssm_visual, dim=-1), F.normalize(ssm_text.detach(), dim=-1)
        cosine = torch.einsum("bsd,ctd->bcst", visual, visual)
        target = torch.einsum("bsd,ctd->bcst", text, text).to(cosine.dtype)
        positive, negative = target >= self.same_above, target <= self.differ_below
        real = sentence_mask[:, None, :, None] & sentence_mask[None, :, None, :]
        gap = (cosine * (positive | negative) - target * positive).abs() * real
        per_pair = gap.sum((2, 3)) / real.sum((2, 3)).clamp(min=1)
        pairs = len(visual) * (len(visual) - 1) / 2
        return per_pair.triu(1).sum() / (pairs + 1e-6)
