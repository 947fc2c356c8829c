"""The symmetric contrast that CML and DCL share."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import first_own_row, gather_rows, global_mean


def symmetric_info_nce(first: Tensor, second: Tensor, logit_scale: Tensor, *, keys: Sequence[Tensor] = ()) -> Tensor:
    """Mean of both cross entropies of telling each row's partner among the rows of all ranks.

    first [B, E] and second [B, E] of length 1, logit_scale scalar, keys int64 [B] each. Two rows that agree in one of the keys
    (one patient, one text) are no wrong answers for one another: the pair leaves the denominator.

    second may be [B, K, E] (and a key [B, K]), K partners of each row: the mean over the K contrasts of first and second[:, k].
    """
    second = second if second.ndim == 3 else second[:, None]
    count = len(first)
    own = first_own_row(count, first.device) + torch.arange(count, device=first.device)
    partners = second.shape[1]
    firsts, seconds = gather_rows(first), gather_rows(second)
    excluded = torch.zeros(partners, count, len(firsts), dtype=torch.bool, device=first.device)
    for key in keys:
        keys_kb, all_keys_kc = (rearrange(rows.reshape(len(rows), -1), "b k -> k b") for rows in (key, gather_rows(key)))
        excluded |= keys_kb[:, :, None] == all_keys_kc[:, None, :]
    excluded &= own[:, None] != torch.arange(len(firsts), device=first.device)
    to_second = logit_scale * torch.einsum("be,cke->kbc", first, seconds)
    to_first = logit_scale * torch.einsum("bke,ce->kbc", second, firsts)
    answers = own.repeat(partners)
    total = sum(
        F.cross_entropy(logits.masked_fill(excluded, -torch.inf).flatten(0, 1), answers, reduction="sum")
        for logits in (to_second, to_first)
    )
    return global_mean(total, torch.tensor(2 * count * partners, device=first.device))
