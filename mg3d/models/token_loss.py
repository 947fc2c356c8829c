"""Cross entropy over a vocabulary without keeping the logits of all tokens."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mg3d.losses.base import full_precision
from mg3d.losses.captioning import IGNORE_INDEX

CHUNK_TOKENS = 1024
"""Tokens whose logits are held at a time: 119 MB in float32 with RadBERT's vocabulary of 28,996."""


def token_losses(
    decode: Callable[[Tensor], Tensor],
    tokens: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    chunk: int = CHUNK_TOKENS,
) -> Tensor:
    """Cross entropy [B, T], in at least float32, of decode(tokens) for tokens [B, T, d].

    Logits are computed for `chunk` tokens at a time; with more, those of each chunk are recomputed in the backward pass.

    Args:
        decode: [n, d] -> logits [n, V], without random draws.
        targets: int64 [B, T]; the cross entropy is 0 where they are -100.
        label_smoothing: fraction of the target that is spread evenly over the vocabulary.
    """

    def losses(tokens: Tensor, targets: Tensor) -> Tensor:
        options = {"ignore_index": IGNORE_INDEX, "label_smoothing": label_smoothing}
        return F.cross_entropy(full_precision(decode(tokens)), targets, reduction="none", **options)

    parts = list(zip(tokens.flatten(0, 1).split(chunk), targets.flatten().split(chunk), strict=True))
    if len(parts) == 1 or not torch.is_grad_enabled():
        found = [losses(*part) for part in parts]
    else:
        found = [checkpoint(losses, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.cat(found).view(targets.shape)
