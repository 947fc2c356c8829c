"""The contrasts that CML and DCL share."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import first_own_row, gather_rows, global_mean, sum_over_ranks


def contrast(first: Tensor, second: Tensor, logit_scale: Tensor, bias: Tensor | None, *, keys: Sequence[Tensor]) -> Tensor:
    """`sigmoid_contrast` where there is a bias, else `symmetric_info_nce`."""
    if bias is None:
        return symmetric_info_nce(first, second, logit_scale, keys=keys)
    return sigmoid_contrast(first, second, logit_scale, bias, keys=keys)


def sigmoid_contrast(first: Tensor, second: Tensor, logit_scale: Tensor, bias: Tensor, *, keys: Sequence[Tensor] = ()) -> Tensor:
    """Every pair of the ranks' rows told apart on its own: -log sigmoid(+-(scale * cosine + bias)), summed over pairs, per row.

    Source: SigLIP (Zhai and others, 2023). Shapes and keys as `symmetric_info_nce`; bias scalar. A pair costs the same whatever
    the other pairs are, so the loss of a row grows with the batch; the bias begins low enough to make up for it.
    """
    second = second if second.ndim == 3 else second[:, None]
    pairs = _pairs(first, second.shape[1], keys)
    logits = logit_scale * torch.einsum("be,cke->kbc", first, gather_rows(second)) + bias
    losses = F.softplus(torch.where(pairs.is_partner, -logits, logits)).masked_fill(pairs.excluded, 0.0)
    return global_mean(losses.sum(), torch.tensor(first.shape[0] * second.shape[1], device=first.device))


class _Pairs(NamedTuple):
    """This rank's B rows against the C rows of all ranks, for each of K partners."""

    own: Tensor
    """int64 [B]: where this rank's rows are among all."""
    is_partner: Tensor
    """bool [B, C]."""
    excluded: Tensor
    """bool [K, B, C]: neither partner nor wrong answer."""


def _pairs(first: Tensor, partners: int, keys: Sequence[Tensor]) -> _Pairs:
    count, device = len(first), first.device
    own = first_own_row(count, device) + torch.arange(count, device=device)
    everyone = int(sum_over_ranks(torch.tensor(count, device=device)))
    excluded = torch.zeros(partners, count, everyone, dtype=torch.bool, device=device)
    for key in keys:
        keys_kb, all_keys_kc = (rearrange(rows.reshape(len(rows), -1), "b k -> k b") for rows in (key, gather_rows(key)))
        excluded |= keys_kb[:, :, None] == all_keys_kc[:, None, :]
    is_partner = own[:, None] == torch.arange(everyone, device=device)
    return _Pairs(own, is_partner, excluded & ~is_partner)


def symmetric_info_nce(first: Tensor, second: Tensor, logit_scale: Tensor, *, keys: Sequence[Tensor] = ()) -> Tensor:
    """Mean of both cross entropies of telling each row's partner among the rows of all ranks.

    first [B, E] and second [B, E] of length 1, logit_scale scalar, keys int64 [B] each. Two rows that agree in one of the keys
    (one patient, one text) are no wrong answers for one another: the pair leaves the denominator.

    second may be [B, K, E] (and a key [B, K]), K partners of each row: the mean over the K contrasts of first and second[:, k].
    """
    second = second if second.ndim == 3 else second[:, None]
    count, partners = len(first), second.shape[1]
    firsts, seconds = gather_rows(first), gather_rows(second)
    pairs = _pairs(first, partners, keys)
    to_second = logit_scale * torch.einsum("be,cke->kbc", first, seconds)
    to_first = logit_scale * torch.einsum("bke,ce->kbc", second, firsts)
    answers = pairs.own.repeat(partners)
    total = sum(
        F.cross_entropy(logits.masked_fill(pairs.excluded, -torch.inf).flatten(0, 1), answers, reduction="sum")
        for logits in (to_second, to_first)
    )
    return global_mean(total, torch.tensor(2 * count * partners, device=first.device))
