"""SSM: sentence similarity matching between patients."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import gather_rows, global_mean
from mg3d.losses.base import Loss


class SentencePairs(NamedTuple):
    """Pairs of sentences of two sets; those that are neither positive nor negative are ignored."""

    text_cosine: Tensor
    """[n, m]."""
    positive: Tensor
    """bool [n, m]: equal meaning."""
    negative: Tensor
    """bool [n, m]: different meaning."""


class SSMLoss(Loss):
    """Pulls the visual sides of sentences with equal meaning together, makes those with different meanings orthogonal.

    Half the mean |visual cosine - text cosine| over positive pairs plus half the mean |visual cosine| over negative pairs, over
    all ranks, so that few positives are not drowned (paper: inter-patient semantic matching). A sentence that states a finding
    and one that denies it are never a pair, however alike their words.

    Args:
        same_above: text cosine from which two sentences are a positive pair (original: 0.9).
        differ_below: text cosine up to which they are a negative pair (original: 0.6).
    """

    def __init__(self, *, same_above: float = 0.9, differ_below: float = 0.6) -> None:
        super().__init__()
        self.same_above, self.differ_below = same_above, differ_below

    def forward(
        self, ssm_visual: Tensor, ssm_text: Tensor, sentence_mask: Tensor, sentence_polarity: Tensor, patient_key: Tensor
    ) -> Tensor:
        """Visual side [B, S, 128], text side [B, S, d''], mask bool and polarity int8 [B, S], patient_key int64 [B].

        0 where no two patients can be compared.
        """
        visual, text = F.normalize(ssm_visual, dim=-1), F.normalize(ssm_text.detach(), dim=-1)
        patient = patient_key[:, None].expand_as(sentence_mask)
        sides = (visual, text.to(visual.dtype), sentence_polarity, patient.contiguous(), sentence_mask)
        own = [side.flatten(0, 1) for side in sides]
        gathered = [gather_rows(side).flatten(0, 1) for side in sides]
        pairs = self.match_pairs(own[1], gathered[1], own[2], gathered[2])
        compared = (own[3][:, None] != gathered[3]) & own[4][:, None] & gathered[4]
        cosine = own[0] @ gathered[0].T
        positive, negative = pairs.positive & compared, pairs.negative & compared
        positive_gap = torch.where(positive, (cosine - pairs.text_cosine).abs(), 0.0).sum()
        negative_gap = torch.where(negative, cosine.abs(), 0.0).sum()
        return 0.5 * (global_mean(positive_gap, positive.sum()) + global_mean(negative_gap, negative.sum()))

    def match_pairs(self, text: Tensor, other_text: Tensor, polarity: Tensor, other_polarity: Tensor) -> SentencePairs:
        """Pairs of sentences with L2-normalised texts [n, d] and [m, d] and polarities int8 [n] and [m]."""
        cosine = text @ other_text.T
        agree = polarity[:, None] == other_polarity
        return SentencePairs(cosine, (cosine >= self.same_above) & agree, (cosine <= self.differ_below) & agree)
