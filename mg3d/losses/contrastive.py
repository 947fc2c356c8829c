"""Contrastive losses over the rows of all ranks: symmetric InfoNCE and the pairwise sigmoid loss of SigLIP."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import first_own_row, gather_rows, global_mean, sum_over_ranks


class ExtraNegatives(NamedTuple):
    """X embeddings without a partner, the same on all ranks: additional negatives of `first`, alongside the rows of `second`."""

    embedding: Tensor
    """[X, E], L2-normalised."""
    keys: tuple[Tensor, ...]
    """int64 [X] each, in the order of the keys of the rows."""
    mask: Tensor
    """bool [X]; False = ignored."""


def contrastive_loss(
    first: Tensor,
    second: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    *,
    keys: Sequence[Tensor],
    extra: ExtraNegatives | None = None,
) -> Tensor:
    """`sigmoid_loss` with a bias, else `symmetric_info_nce`."""
    if logit_bias is None:
        return symmetric_info_nce(first, second, logit_scale, keys=keys, extra=extra)
    return sigmoid_loss(first, second, logit_scale, logit_bias, keys=keys, extra=extra)


def symmetric_info_nce(
    first: Tensor, second: Tensor, logit_scale: Tensor, *, keys: Sequence[Tensor] = (), extra: ExtraNegatives | None = None
) -> Tensor:
    """Symmetric InfoNCE over all ranks. Rows that share a key (patient or text) are not used as negatives of each other.

    Args:
        first: [B, E], L2-normalised.
        second: [B, E], or [B, K, E] for K positives per row: the mean over the K losses of `first` and `second[:, k]`.
        logit_scale: scalar, 1 / temperature.
        keys: int64 [B] (or [B, K]) each.
        extra: negatives of `first` that share no key with it.
    """
    second = second if second.ndim == 3 else second[:, None]
    count, positives = len(first), second.shape[1]
    pairs = _pairs(first, positives, keys)
    to_second = logit_scale * torch.einsum("be,cke->kbc", first, gather_rows(second))
    to_first = logit_scale * torch.einsum("bke,ce->kbc", second, gather_rows(first))
    to_second, to_first = (logits.masked_fill(pairs.ignored, -torch.inf) for logits in (to_second, to_first))
    if extra is not None:
        logits = logit_scale * first @ extra.embedding.to(first.dtype).T
        logits = _mask_shared_keys(logits, keys, extra, positives)
        to_second = torch.cat([to_second, logits], -1)
    targets = pairs.target.repeat(positives)
    total = sum(F.cross_entropy(logits.flatten(0, 1), targets, reduction="sum") for logits in (to_second, to_first))
    return global_mean(total, torch.tensor(2 * count * positives, device=first.device))


def sigmoid_loss(
    first: Tensor,
    second: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    keys: Sequence[Tensor] = (),
    extra: ExtraNegatives | None = None,
) -> Tensor:
    """-log sigmoid(+-(scale * cosine + bias)) of every pair, summed over pairs, per row (SigLIP; Zhai et al., 2023).

    Arguments as in `symmetric_info_nce`; `logit_bias` is a scalar. The loss of a row grows with the batch, because pairs do not
    compete; the initial bias compensates for it.
    """
    second = second if second.ndim == 3 else second[:, None]
    count, positives = len(first), second.shape[1]
    pairs = _pairs(first, positives, keys)
    logits = logit_scale * torch.einsum("be,cke->kbc", first, gather_rows(second)) + logit_bias
    losses = F.softplus(torch.where(pairs.is_positive, -logits, logits)).masked_fill(pairs.ignored, 0.0)
    total = losses.sum()
    if extra is not None:
        logits = logit_scale * first @ extra.embedding.to(first.dtype).T + logit_bias
        total = total + F.softplus(_mask_shared_keys(logits, keys, extra, positives)).sum()
    return global_mean(total, torch.tensor(count * positives, device=first.device))


class _Pairs(NamedTuple):
    """The B rows of this rank against the C rows of all ranks, for each of K positives."""

    target: Tensor
    """int64 [B]: indices of the rows of this rank among all rows."""
    is_positive: Tensor
    """bool [B, C]."""
    ignored: Tensor
    """bool [K, B, C]: neither positive nor negative."""


def _pairs(first: Tensor, positives: int, keys: Sequence[Tensor]) -> _Pairs:
    count, device = len(first), first.device
    target = first_own_row(count, device) + torch.arange(count, device=device)
    total = int(sum_over_ranks(torch.tensor(count, device=device)))
    shared = torch.zeros(positives, count, total, dtype=torch.bool, device=device)
    for key in keys:
        own, gathered = (rearrange(rows.reshape(len(rows), -1), "b k -> k b") for rows in (key, gather_rows(key)))
        shared |= own[:, :, None] == gathered[:, None, :]
    is_positive = target[:, None] == torch.arange(total, device=device)
    return _Pairs(target, is_positive, shared & ~is_positive)


def _mask_shared_keys(logits: Tensor, keys: Sequence[Tensor], extra: ExtraNegatives, positives: int) -> Tensor:
    """Logits [K, B, X] of [B, X]; -inf for masked negatives and those that share a key, int64 [B] or [B, K], with the row."""
    shared = ~extra.mask.expand(positives, *logits.shape)
    for key, others in zip(keys, extra.keys, strict=True):
        shared = shared | (key.reshape(len(key), -1).T[..., None] == others)
    return logits.expand_as(shared).masked_fill(shared, -torch.inf)
