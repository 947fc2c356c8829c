"""The contrasts that CML and DCL share."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import first_own_row, gather_rows, global_mean, sum_over_ranks


class Others(NamedTuple):
    """X vectors that are nobody's partner, the same on all ranks: more wrong answers."""

    vectors: Tensor
    """[X, E] of length 1."""
    keys: tuple[Tensor, ...]
    """int64 [X] each, in the order of the rows' keys."""
    is_there: Tensor
    """bool [X]; False = no vector yet."""


class More(NamedTuple):
    """Wrong answers beyond the rows of all ranks."""

    to_first: Others | None = None
    """For each second, beside the firsts."""
    to_second: Others | None = None
    """For each first, beside the seconds."""


ALONE = More()


def contrast(
    first: Tensor, second: Tensor, logit_scale: Tensor, bias: Tensor | None, *, keys: Sequence[Tensor], more: More = ALONE
) -> Tensor:
    """`sigmoid_contrast` where there is a bias, else `symmetric_info_nce`."""
    if bias is None:
        return symmetric_info_nce(first, second, logit_scale, keys=keys, more=more)
    return sigmoid_contrast(first, second, logit_scale, bias, keys=keys, more=more)


def _to_others(
    rows: Tensor, others: Others | None, logit_scale: Tensor, keys: Sequence[Tensor], bias: Tensor | float = 0.0
) -> Tensor:
    """Logits [K, B, X] of rows [B, K, E] and others; -inf where they agree in a key of the rows, int64 [B] or [B, K]."""
    if others is None:
        return rows.new_empty(rows.shape[1], len(rows), 0)
    logits = logit_scale * torch.einsum("bke,xe->kbx", rows, others.vectors.to(rows.dtype)) + bias
    agree = ~others.is_there.expand(logits.shape)
    for key, other in zip(keys, others.keys, strict=True):
        agree = agree | (key.reshape(len(rows), -1).T[..., None] == other)
    return logits.masked_fill(agree, -torch.inf)


def sigmoid_contrast(
    first: Tensor, second: Tensor, logit_scale: Tensor, bias: Tensor, *, keys: Sequence[Tensor] = (), more: More = ALONE
) -> Tensor:
    """Every pair of the ranks' rows told apart on its own: -log sigmoid(+-(scale * cosine + bias)), summed over pairs, per row.

    Source: SigLIP (Zhai and others, 2023). Shapes and keys as `symmetric_info_nce`; bias scalar. A pair costs the same whatever
    the other pairs are, so the loss of a row grows with the batch; the bias begins low enough to make up for it.
    """
    second = second if second.ndim == 3 else second[:, None]
    pairs = _pairs(first, second.shape[1], keys)
    logits = logit_scale * torch.einsum("be,cke->kbc", first, gather_rows(second)) + bias
    losses = F.softplus(torch.where(pairs.is_partner, -logits, logits)).masked_fill(pairs.excluded, 0.0)
    beyond = [
        F.softplus(_to_others(rows, others, logit_scale, keys, bias)).sum()
        for rows, others in ((first[:, None].expand_as(second), more.to_second), (second, more.to_first))
    ]
    return global_mean(losses.sum() + sum(beyond), torch.tensor(first.shape[0] * second.shape[1], device=first.device))


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


def symmetric_info_nce(
    first: Tensor, second: Tensor, logit_scale: Tensor, *, keys: Sequence[Tensor] = (), more: More = ALONE
) -> Tensor:
    """Mean of both cross entropies of telling each row's partner among the rows of all ranks.

    first [B, E] and second [B, E] of length 1, logit_scale scalar, keys int64 [B] each. Two rows that agree in one of the keys
    (one patient, one text) are no wrong answers for one another: the pair leaves the denominator.

    second may be [B, K, E] (and a key [B, K]), K partners of each row: the mean over the K contrasts of first and second[:, k].
    What agrees with a row in a key is no wrong answer among `more` either.
    """
    second = second if second.ndim == 3 else second[:, None]
    count, partners = len(first), second.shape[1]
    firsts, seconds = gather_rows(first), gather_rows(second)
    pairs = _pairs(first, partners, keys)
    to_second = logit_scale * torch.einsum("be,cke->kbc", first, seconds)
    to_first = logit_scale * torch.einsum("bke,ce->kbc", second, firsts)
    beyond = (
        _to_others(first[:, None].expand_as(second), more.to_second, logit_scale, keys),
        _to_others(second, more.to_first, logit_scale, keys),
    )
    answers = pairs.own.repeat(partners)
    total = sum(
        F.cross_entropy(
            torch.cat([logits.masked_fill(pairs.excluded, -torch.inf), others], -1).flatten(0, 1), answers, reduction="sum"
        )
        for logits, others in zip((to_second, to_first), beyond, strict=True)
    )
    return global_mean(total, torch.tensor(2 * count * partners, device=first.device))
