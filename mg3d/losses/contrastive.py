"""Contrastive loss over the rows of all ranks: symmetric InfoNCE or the pairwise sigmoid loss of SigLIP."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.distributed import first_own_row, gather_rows, global_mean


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
    logit_scale: Tensor | float,
    logit_bias: Tensor | None = None,
    *,
    keys: Sequence[Tensor] = (),
    extra: ExtraNegatives | None = None,
) -> Tensor:
    """Symmetric InfoNCE; with a bias, the pairwise sigmoid loss of SigLIP (Zhai et al., 2023).

    Rows that share a key (patient or text) are not used as negatives of each other. The sigmoid loss is -log sigmoid(+-logit),
    summed over pairs, per row. It grows with the batch, because pairs do not compete; the initial bias compensates for it.

    Args:
        first: [B, E], L2-normalised.
        second: [B, E], or [B, K, E] for K positives per row: the mean over the K losses of `first` and `second[:, k]`.
        logit_scale: scalar, 1 / temperature.
        logit_bias: scalar, added to the logits of the sigmoid loss.
        keys: int64 [B] (or [B, K]) each.
        extra: negatives of `first` that share no key with it.
    """
    all_first, all_second, *all_keys = gather_rows(first, second, *keys)
    second, all_second = (rows if rows.ndim == 3 else rows[:, None] for rows in (second, all_second))
    (count, positives), device = second.shape[:2], first.device
    target = first_own_row(count) + torch.arange(count, device=device)
    to_second = logit_scale * torch.einsum("be,cke->kbc", first, all_second)
    excluded = _share_a_key(keys, all_keys, to_second)
    excluded &= target[:, None] != torch.arange(len(all_second), device=device)
    to_second = to_second.masked_fill(excluded, -torch.inf)
    if extra is not None:
        to_extra = (logit_scale * first @ extra.embedding.to(first.dtype).T).expand(positives, -1, -1)
        hidden = _share_a_key(keys, extra.keys, to_extra) | ~extra.mask
        to_second = torch.cat([to_second, to_extra.masked_fill(hidden, -torch.inf)], -1)
    if logit_bias is not None:
        logits = to_second + logit_bias
        is_positive = target[:, None] == torch.arange(logits.shape[-1], device=device)
        return global_mean(F.softplus(torch.where(is_positive, -logits, logits)).sum(), count * positives)
    to_first = logit_scale * torch.einsum("bke,ce->kbc", second, all_first)
    both = (to_second, to_first.masked_fill(excluded, -torch.inf))
    total = sum(F.cross_entropy(logits.flatten(0, 1), target.repeat(positives), reduction="sum") for logits in both)
    return global_mean(total, 2 * count * positives)


def _share_a_key(keys: Sequence[Tensor], others: Sequence[Tensor], logits: Tensor) -> Tensor:
    """bool, of the shape of logits [K, B, C]: row b shares a key with row c; keys int64 [B] or [B, K], others [C] or [C, K]."""
    shared = torch.zeros_like(logits, dtype=torch.bool)
    for key, other in zip(keys, others, strict=True):
        key, other = (rows.reshape(len(rows), -1).T for rows in (key, other))
        shared = shared | (key[..., None] == other[:, None])
    return shared
