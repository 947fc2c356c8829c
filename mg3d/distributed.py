"""Helpers for distributed training that also work without a process group.

Every loss is (sum over all ranks) / (count over all ranks). Each of W ranks returns its own sum times W over the global count, so
that the average that DistributedDataParallel takes, of value and gradient, is exact.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, without gradient; shapes must be equal."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def global_mean(total: Tensor, count: Tensor | int) -> Tensor:
    """This rank's part of (sum of totals) / (sum of counts): the mean over ranks is that quotient.

    0, with a graph, if the global count is 0.
    """
    count = count.to(total.dtype) if isinstance(count, Tensor) else total.new_full((), count)
    return total * world_size() / sum_over_ranks(count).clamp(min=1)


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward pass sums the gradients of all ranks for the rows of this rank."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        ctx.batch = len(rows)
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.batch : (rank() + 1) * ctx.batch]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows [B, ...] of every rank as [sum of B, ...] in rank order, with the exact gradient.

    B and the second axis (sentences) may differ between ranks; the second axis is zero-padded to the longest.
    """
    if world_size() == 1:
        return rows
    sizes = torch.tensor([len(rows), rows.shape[1] if rows.ndim > 1 else 0], device=rows.device)
    gathered_sizes = [torch.empty_like(sizes) for _ in range(world_size())]
    dist.all_gather(gathered_sizes, sizes)
    counts, seconds = zip(*torch.stack(gathered_sizes).tolist(), strict=True)  # one device synchronisation
    pad_rows = max(counts) - len(rows)
    pad_second = max(seconds) - (rows.shape[1] if rows.ndim > 1 else 0)
    if rows.ndim > 1:
        rows = F.pad(rows, (0, 0) * (rows.ndim - 2) + (0, pad_second, 0, pad_rows))
    else:
        rows = F.pad(rows, (0, pad_rows))
    numeric = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    gathered = _GatherRows.apply(numeric).to(rows.dtype)
    if len(set(counts)) == 1:
        return gathered
    keep = torch.cat([torch.arange(max(counts), device=rows.device) < count for count in counts])
    return gathered[keep]


def first_own_row(count: int, device: torch.device) -> int:
    """Index of this rank's first row in the result of `gather_rows`; `count` = rows of this rank."""
    if world_size() == 1:
        return 0
    counts = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([count], device=device))
    return sum(torch.cat(counts).tolist()[: rank()])
