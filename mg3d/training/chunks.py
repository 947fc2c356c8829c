"""One pass in chunks: all patients are contrasted with one another while the graph of only some is held.

The same gradients as of one big batch. Each chunk is computed without keeping its graph; the losses see all of them; in the
backward pass each chunk is computed again, its gradient taken, and its graph dropped (Gao and others, 2021: gradient caching).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mg3d.types import Batch, Features


def features_in_chunks(model: Callable[[Batch], Features], batch: Batch, chunk: int) -> Features:
    """What `model(batch)` gives, `chunk` patients at a time; the draws inside the model are repeated in the backward pass.

    Padding is that of the whole batch in every chunk.
    """
    if chunk == 0 or len(batch.study_id) <= chunk:
        return model(batch)
    starts = range(0, len(batch.study_id), chunk)
    chunks = [Batch(*(field[start : start + chunk] for field in batch)) for start in starts]
    if torch.is_grad_enabled():
        parts = [checkpoint(model, part, use_reentrant=False) for part in chunks]
    else:
        parts = [model(part) for part in chunks]
    return Features(*(_joined(field) for field in zip(*parts, strict=True)))


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    """Fields of the chunks as one; scalars are the model's own and equal in all chunks."""
    return parts[0] if parts[0] is None or parts[0].ndim == 0 else torch.cat(parts)
