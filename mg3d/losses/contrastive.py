"""The symmetric contrast that CML and DCL share."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import first_own_row, gather_rows, global_mean


def symmetric_info_nce(first: Tensor, second: Tensor, logit_scale: Tensor, *, keys: Sequence[Tensor] = ()) -> Tensor:
    """Mean of both cross entropies of telling each row's partner among the rows of all ranks.

    first, second [B, E] of length 1; logit_scale scalar; keys int64 [B] each. Two rows that agree in one of the keys (one
    patient, one text) are no wrong answers for one another: the pair leaves the denominator.
    """
    count = len(first)
    own = first_own_row(count, first.device) + torch.arange(count, device=first.device)
    firsts, seconds = gather_rows(first), gather_rows(second)
    excluded = torch.zeros(count, len(firsts), dtype=torch.bool, device=first.device)
    for key in keys:
        excluded |= key[:, None] == gather_rows(key)
    excluded &= own[:, None] != torch.arange(len(firsts), device=first.device)
    total = sum(
        F.cross_entropy((logit_scale * one @ others.T).masked_fill(excluded, -torch.inf), own, reduction="sum")
        for one, others in ((first, seconds), (second, firsts))
    )
    return global_mean(total, torch.tensor(2 * count, device=first.device))
