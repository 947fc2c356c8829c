"""The symmetric contrast that CML and DCL share."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import first_own_row, gather_rows, global_mean


def symmetric_info_nce(
    first: Tensor, second: Tensor, logit_scale: Tensor, *, patient_key: Tensor, report_key: Tensor, exclude_duplicates: bool
) -> Tensor:
    """Mean of both cross entropies of telling each row's partner among the rows of all ranks.

    first, second [B, E] of length 1; logit_scale scalar; keys int64 [B]. With `exclude_duplicates`, a row of the same patient or
    with the same report text is no wrong answer: the pair leaves the denominator.
    """
    count = len(first)
    own = first_own_row(count, first.device) + torch.arange(count, device=first.device)
    patients, reports = gather_rows(patient_key), gather_rows(report_key)
    same = (patient_key[:, None] == patients) | (report_key[:, None] == reports)
    partner = own[:, None] == torch.arange(len(patients), device=first.device)
    excluded = same & ~partner if exclude_duplicates else torch.zeros_like(partner)
    total = sum(
        F.cross_entropy((logit_scale * one @ gather_rows(other).T).masked_fill(excluded, -torch.inf), own, reduction="sum")
        for one, other in ((first, second), (second, first))
    )
    return global_mean(total, torch.tensor(2 * count, device=first.device))
