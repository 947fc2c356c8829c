"""SSM: sentence similarity matching between patients."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import gather_rows, sum_over_ranks, world_size
from mg3d.losses.base import Loss


class SentencePairs(NamedTuple):
    """Pairs of sentences of two sets; those that are neither positive nor negative are ignored."""

    text_cosine: Tensor
    """[n, m]."""
    positive: Tensor
    """bool [n, m]: equal meaning."""
    negative: Tensor
    """bool [n, m]: different meaning."""


class _Sentences(NamedTuple):
    """Padded sentences of some patients, [B * S, ...] each."""

    visual: Tensor
    text: Tensor
    """Both L2-normalised; the text without gradient."""
    real: Tensor
    polarity: Tensor
    patient: Tensor

    @classmethod
    def of(cls, visual: Tensor, text: Tensor, mask: Tensor, polarity: Tensor, patient_key: Tensor) -> "_Sentences":
        visual, text = F.normalize(visual, dim=-1), F.normalize(text.detach(), dim=-1).to(visual.dtype)
        patient = patient_key[:, None].expand_as(mask)
        return cls(*(side.flatten(0, 1) for side in (visual, text, mask, polarity, patient)))


class SSMLoss(Loss):
    """Pulls the visual sides of sentences with equal meaning together, makes those with different meanings orthogonal.

    Half the mean |visual cosine - text cosine| over positive pairs plus half the mean |visual cosine| over negative pairs, over
    all ranks, so that few positives are not drowned (paper: inter-patient semantic matching). A sentence that states a finding,
    one that denies it and one that is uncertain are never a pair, however alike their words.

    Args:
        same_above: text cosine from which two sentences are a positive pair (original: 0.9).
        differ_below: text cosine up to which they are a negative pair (original: 0.6).
    """

    def __init__(self, *, same_above: float = 0.9, differ_below: float = 0.6) -> None:
        super().__init__()
        self.same_above, self.differ_below = same_above, differ_below

    gathers = ("ssm_visual", "ssm_text", "sentence_mask", "sentence_polarity", "patient_key")

    def forward(
        self, ssm_visual: Tensor, ssm_text: Tensor, sentence_mask: Tensor, sentence_polarity: Tensor, patient_key: Tensor
    ) -> Tensor:
        """Visual side [B, S, 128], text side [B, S, d''], mask bool and polarity int8 [B, S], patient_key int64 [B].

        0 where no two patients can be compared.
        """
        own = _Sentences.of(ssm_visual, ssm_text, sentence_mask, sentence_polarity, patient_key)
        gathered = _Sentences.of(*gather_rows(ssm_visual, ssm_text, sentence_mask, sentence_polarity, patient_key))
        pairs = self.match_pairs(own.text, gathered.text, own.polarity, gathered.polarity)
        compared = (own.patient[:, None] != gathered.patient) & own.real[:, None] & gathered.real
        cosine = own.visual @ gathered.visual.T
        positive, negative = pairs.positive & compared, pairs.negative & compared
        positive_gap = torch.where(positive, (cosine - pairs.text_cosine).abs(), 0.0).sum()
        negative_gap = torch.where(negative, cosine.abs(), 0.0).sum()
        counts = sum_over_ranks(torch.stack([positive.sum(), negative.sum()])).to(cosine.dtype).clamp(min=1)
        return 0.5 * world_size() * (torch.stack([positive_gap, negative_gap]) / counts).sum()

    def match_pairs(self, text: Tensor, other_text: Tensor, polarity: Tensor, other_polarity: Tensor) -> SentencePairs:
        """Pairs of sentences with L2-normalised texts [n, d] and [m, d] and polarities int8 [n] and [m]."""
        cosine = text @ other_text.T
        agree = polarity[:, None] == other_polarity
        return SentencePairs(cosine, (cosine >= self.same_above) & agree, (cosine <= self.differ_below) & agree)
