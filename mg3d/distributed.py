"""Helpers for distributed training that also work without a process group.

Every loss is (sum over all ranks) / (count over all ranks). Each of W ranks returns its own sum times W over the global count, so
that the average that DistributedDataParallel takes, of value and gradient, is exact.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


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

    0, with a graph, if the global count is 0. count: an integer that is the same on all ranks, or [B, ...], which is summed.
    """
    if isinstance(count, int):
        return total / max(count, 1)
    return total * world_size() / gather_rows(count)[0].sum().to(total.dtype).clamp(min=1)


class _GatherRows(torch.autograd.Function):
    """All-gather of several tensors in one collective; the backward pass sums gradients with one reduce-scatter."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, *rows: Tensor) -> tuple[Tensor, ...]:
        columns = [part.reshape(len(part), part[:1].numel()).contiguous().view(torch.uint8) for part in rows]
        packed = torch.cat(columns, 1)
        ranks = [torch.empty_like(packed) for _ in range(world_size())]
        dist.all_gather(ranks, packed)
        parts = torch.cat(ranks).split([column.shape[1] for column in columns], 1)
        gathered = [part.contiguous().view(row.dtype).reshape(-1, *row.shape[1:]) for part, row in zip(parts, rows, strict=True)]
        ctx.shapes = [row.shape if row.is_floating_point() else None for row in rows]
        ctx.mark_non_differentiable(*(rows for rows in gathered if not rows.is_floating_point()))
        return tuple(gathered)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        differentiable = [index for index, shape in enumerate(ctx.shapes) if shape is not None]
        packed = torch.cat([gradients[index].flatten(1) for index in differentiable], 1)
        own = torch.empty_like(packed[: len(packed) // world_size()])
        dist.reduce_scatter(own, list(packed.chunk(world_size())))
        parts = own.split([ctx.shapes[index][1:].numel() for index in differentiable], 1)
        results: list[Tensor | None] = [None] * len(ctx.shapes)
        for index, part in zip(differentiable, parts, strict=True):
            results[index] = part.reshape(ctx.shapes[index])
        return tuple(results)


_gathered: dict[int, Tensor] = {}
"""id of a tensor of this rank -> rows of all ranks, while `gathered_together` is active."""


def gather_rows(*rows: Tensor) -> tuple[Tensor, ...]:
    """Each tensor [B, ...] as the rows of all ranks [ranks * B, ...], in rank order and with the exact gradient.

    Shapes must be equal on all ranks. One collective, or none for tensors of `gathered_together`.
    """
    if world_size() == 1:
        return rows
    missing = {id(tensor): tensor for tensor in rows if id(tensor) not in _gathered}
    found = dict(zip(missing, _GatherRows.apply(*missing.values()), strict=True)) if missing else {}
    return tuple((_gathered | found)[id(tensor)] for tensor in rows)


@contextmanager
def gathered_together(rows: Iterable[Tensor]) -> Iterator[None]:
    """Gathers all these tensors in one collective; `gather_rows` of the same tensors returns the results."""
    together = {id(tensor): tensor for tensor in rows}
    _gathered.update(zip(together, gather_rows(*together.values()), strict=True))
    try:
        yield
    finally:
        _gathered.clear()


def first_own_row(count: int) -> int:
    """Index of this rank's first row in the result of `gather_rows`; `count` = rows per rank."""
    return rank() * count
