"""SSM: sentence similarity matching between patients."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import gather_rows, global_mean
from mg3d.losses.base import Objective


class SentencePairs(NamedTuple):
    """Every sentence of one side against every sentence of the other."""

    text_cosine: Tensor
    """[n, m]."""
    same: Tensor
    """bool [n, m]; they say the same."""
    different: Tensor
    """bool [n, m]; they clearly differ. Neither: ignored."""


class SSMLoss(Objective):
    """Sentences of two patients that say the same should be close on the visual side too; clearly different ones orthogonal.

    The doubtful middle is ignored (paper: inter-patient semantic matching).

    Args:
        same_above: text cosine from which two sentences say the same (original: 0.9).
        differ_below: text cosine up to which they differ (original: 0.6).
        form: "two_means", half the mean over same pairs plus half the mean over different pairs, of all ranks, so that few
            matches are not drowned; "pair_mean", per pair of patients the mean over all its sentence pairs, then over pairs of
            patients, of this rank alone (released).
        use_polarity: a sentence that states and one that denies are never a pair, however alike their words (two_means only).
    """

    def __init__(
        self,
        *,
        same_above: float = 0.9,
        differ_below: float = 0.6,
        form: Literal["two_means", "pair_mean"] = "two_means",
        use_polarity: bool = True,
    ) -> None:
        super().__init__()
        self.same_above, self.differ_below = same_above, differ_below
        self.form, self.use_polarity = form, use_polarity

    def forward(
        self,
        ssm_visual: Tensor,
        ssm_text: Tensor,
        sentence_mask: Tensor,
        sentence_polarity: Tensor,
        patient_key: Tensor,
    ) -> Tensor:
        """Visual [B, S, 128] and text side [B, S, d''], mask bool and polarity int8 [B, S], patient_key int64 [B].

        0 where no two patients can be compared.
        """
        visual, text = F.normalize(ssm_visual, dim=-1), F.normalize(ssm_text.detach(), dim=-1)
        if self.form == "pair_mean":
            return self._pair_mean(visual, text, sentence_mask)
        patient = patient_key[:, None].expand_as(sentence_mask)
        sides = (visual, text.to(visual.dtype), sentence_polarity, patient.contiguous())
        everyone = gather_rows(sentence_mask)
        own = [side[sentence_mask] for side in sides]
        others = [gather_rows(side)[everyone] for side in sides]
        pairs = self.sort_pairs(own[1], others[1], own[2], others[2])
        apart = own[3][:, None] != others[3]
        cosine = own[0] @ others[0].T
        same, different = pairs.same & apart, pairs.different & apart
        gap_same = torch.where(same, (cosine - pairs.text_cosine).abs(), 0.0).sum()
        gap_different = torch.where(different, cosine.abs(), 0.0).sum()
        return 0.5 * (global_mean(gap_same, same.sum()) + global_mean(gap_different, different.sum()))

    def sort_pairs(self, text: Tensor, other_text: Tensor, polarity: Tensor, other_polarity: Tensor) -> SentencePairs:
        """Which sentence pairs are same and which different; texts [n, d] and [m, d] of length 1, polarities int8 [n] and [m]."""
        cosine = text @ other_text.T
        agree = polarity[:, None] == other_polarity if self.use_polarity else torch.ones_like(cosine, dtype=torch.bool)
        return SentencePairs(cosine, (cosine >= self.same_above) & agree, (cosine <= self.differ_below) & agree)

    def _pair_mean(self, visual: Tensor, text: Tensor, sentence_mask: Tensor) -> Tensor:
        cosine = torch.einsum("bsd,ctd->bcst", visual, visual)
        target = torch.einsum("bsd,ctd->bcst", text, text).to(cosine.dtype)
        same, different = target >= self.same_above, target <= self.differ_below
        real = sentence_mask[:, None, :, None] & sentence_mask[None, :, None, :]
        gap = (cosine * (same | different) - target * same).abs() * real
        per_pair = gap.sum((2, 3)) / real.sum((2, 3)).clamp(min=1)
        pairs = len(visual) * (len(visual) - 1) / 2
        return per_pair.triu(1).sum() / (pairs + 1e-6)
