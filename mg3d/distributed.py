"""Rank helpers that also work without a process group.

The rule of every loss: value = (sum over all ranks) / (count over all ranks). A rank returns its own sum times W over the global
count, so that DistributedDataParallel's average over W ranks is the value and its gradient the exact one.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor of equal shape over all ranks, without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """This rank's share of (sum of totals) / (sum of counts), scaled so that the mean over ranks is that quotient.

    With a global count of 0 the result is 0 and still has a graph.
    """
    everyone = sum_over_ranks(count.to(total.dtype))
    return total * world_size() / everyone.clamp(min=1)


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward sums the gradients of every rank for the rows this rank gave."""

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

    B may differ between ranks, and so may the second axis (sentences), which is padded with zeros to the longest.
    """
    if world_size() == 1:
        return rows
    sizes = torch.tensor([len(rows), rows.shape[1] if rows.ndim > 1 else 0], device=rows.device)
    everyone = [torch.empty_like(sizes) for _ in range(world_size())]
    dist.all_gather(everyone, sizes)
    counts, seconds = zip(*torch.stack(everyone).tolist(), strict=True)  # one wait for the device, not one per number
    pad_rows = max(counts) - len(rows)
    pad_second = max(seconds) - (rows.shape[1] if rows.ndim > 1 else 0)
    if rows.ndim > 1:
        rows = F.pad(rows, (0, 0) * (rows.ndim - 2) + (0, pad_second, 0, pad_rows))
    else:
        rows = F.pad(rows, (0, pad_rows))
    as_number = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    gathered = _GatherRows.apply(as_number).to(rows.dtype)
    if len(set(counts)) == 1:
        return gathered
    keep = torch.cat([torch.arange(max(counts), device=rows.device) < count for count in counts])
    return gathered[keep]


def first_own_row(count: int, device: torch.device) -> int:
    """Where this rank's rows begin in what `gather_rows` returns; `count` = rows of this rank."""
    if world_size() == 1:
        return 0
    counts = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([count], device=device))
    return sum(torch.cat(counts).tolist()[: rank()])
