"""GradCache: contrastive losses over a large batch, with the graph of a few patients in memory at a time (Gao et al., 2021)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mg3d.types import Batch, Features


def features_in_chunks(model: Callable[[Batch], Features], batch: Batch, chunk: int) -> Features:
    """`model(batch)`, `chunk` patients at a time; 0 = the whole batch at once.

    Each chunk is computed without keeping its graph and recomputed, with the same random draws, in the backward pass. Gradients
    equal those of the whole batch. Every chunk is padded as the whole batch is.
    """
    if chunk == 0 or len(batch.study_id) <= chunk:
        return model(batch)
    starts = range(0, len(batch.study_id), chunk)
    chunks = [Batch(*(field[start : start + chunk] for field in batch)) for start in starts]
    if torch.is_grad_enabled():
        parts = [checkpoint(model, part, use_reentrant=False) for part in chunks]
    else:
        parts = [model(part) for part in chunks]
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def _joined(parts: list[Tensor]) -> Tensor:
    """One feature of all chunks; scalars, such as the logit scale, are equal in all of them."""
    return torch.cat(parts) if parts[0].ndim else parts[0]
