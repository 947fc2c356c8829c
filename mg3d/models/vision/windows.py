"""Attention within shifted windows, forward and backward, without an attention map that outlives its window.

The same function as in MONAI's Swin blocks: a volume of tokens is padded to whole windows, rolled and cut into windows; every
token attends to those of its window that come from the same side of the roll, with a learned bias for each relative place.
Here the tokens of windows are gathered by index instead of padded, rolled and copied; windows that share a mask are computed
together, so that there is one mask for each kind of window instead of one per window; for the backward pass nothing is kept but
the projected tokens and the result, from which the maps are computed again, a few windows at a time.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

APART = -100.0
"""Added where two tokens come from different sides of the roll; what MONAI adds, so that results are equal."""
CHUNK_BYTES = {"cpu": 6 << 20}
"""Device -> attention maps that are computed at once in the backward pass: on a CPU what stays in its cache."""
CHUNK_BYTES_ELSEWHERE = 1 << 30


class Group(NamedTuple):
    """Windows of all volumes of a batch whose tokens lie on the same sides of the roll."""

    first: int
    last: int
    """Places of the group in the order of windows."""
    mask: Tensor | None
    """float32 [n, n], 0 or APART; None where all tokens come from one side."""


class WindowPlan(NamedTuple):
    """How the tokens of a batch are cut into windows."""

    gather: Tensor
    """int64 [windows * n]: the token of the batch at each place, 0 at padding."""
    scatter: Tensor
    """int64 [B * tokens]: the place of each token of the batch."""
    padding: Tensor
    """int64: places that hold no token."""
    groups: tuple[Group, ...]
    size: int
    """n, places of a window."""


def clip_window(shape: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and shift for `shape` tokens: along an axis no longer than the window it is the axis, and unshifted."""
    fits = [side <= length for side, length in zip(shape, window, strict=True)]
    sides = tuple(side if fit else length for side, length, fit in zip(shape, window, fits, strict=True))
    return sides, tuple(0 if fit else step for step, fit in zip(shift, fits, strict=True))


@lru_cache(maxsize=64)
def plan_windows(
    batch: int,
    shape: tuple[int, int, int],
    window: tuple[int, int, int],
    *,
    shift: tuple[int, int, int],
    device: torch.device,
) -> WindowPlan:
    """The windows of `batch` volumes of `shape` tokens (z, y, x), each rolled by `shift` tokens towards its origin.

    window and shift: as `clip_window` gives them. Windows of one kind follow one another, those of one place for all volumes.
    """
    padded = [-(-side // length) * length for side, length in zip(shape, window, strict=True)]
    z, y, x = torch.meshgrid(*((torch.arange(n) + step) % n for n, step in zip(padded, shift, strict=True)), indexing="ij")
    inside = (z < shape[0]) & (y < shape[1]) & (x < shape[2])
    tokens = _cut(torch.where(inside, (z * shape[1] + y) * shape[2] + x, -1), window)
    sides = _cut(_sides(padded, shift), window)
    kinds, which = torch.unique(sides[:, :, None] != sides[:, None], dim=0, return_inverse=True)
    order = torch.argsort(which, stable=True)
    whole = shape[0] * shape[1] * shape[2]
    of_batch = whole * torch.arange(batch).view(1, -1, 1)
    chosen = tokens[order][:, None]
    places = torch.where(chosen >= 0, chosen + of_batch, -1).flatten()
    here = (places >= 0).nonzero()[:, 0]
    scatter = torch.empty(batch * whole, dtype=torch.int64)
    scatter[places[here]] = here
    groups, first = [], 0
    for apart, count in zip(kinds, torch.bincount(which).tolist(), strict=True):
        mask = (apart.float() * APART).to(device) if apart.any() else None
        groups.append(Group(first * batch, (first + count) * batch, mask))
        first += count
    padding = (places < 0).nonzero()[:, 0]
    return WindowPlan(
        places.clamp(min=0).to(device), scatter.to(device), padding.to(device), tuple(groups), tokens.shape[1]
    )


def _sides(padded: Sequence[int], shift: Sequence[int]) -> Tensor:
    """A number for each token of the rolled volume, equal for tokens from the same side of the roll along every axis."""
    sides = torch.zeros(tuple(padded), dtype=torch.int64)
    for axis, (length, step) in enumerate(zip(padded, shift, strict=True)):
        wrapped = (torch.arange(length) >= length - step).long()
        sides = 2 * sides + wrapped.view([-1 if other == axis else 1 for other in range(3)])
    return sides


def _cut(volume: Tensor, window: Sequence[int]) -> Tensor:
    """[D, H, W] -> [windows, n]."""
    counts = [side // length for side, length in zip(volume.shape, window, strict=True)]
    split = volume.reshape(counts[0], window[0], counts[1], window[1], counts[2], window[2])
    return split.permute(0, 2, 4, 1, 3, 5).reshape(counts[0] * counts[1] * counts[2], -1)


class WindowAttention(torch.autograd.Function):
    """softmax(q k' / sqrt(d) + bias) v within windows; tokens come and go in their own order.

    A place without a token holds what a token of zeros is projected to, the bias of the projection, as in MONAI.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, empty: Tensor, bias: Tensor, plan: WindowPlan) -> Tensor:
        """[tokens, C] of qkv [tokens, 3 C] (all tokens of the batch), empty [3 C] and bias [heads, n, n]."""
        q, k, v = _in_windows(qkv, empty, plan, len(bias), parts=3).unbind()
        windows, heads, size, width = q.shape
        out = qkv.new_empty((windows, size, heads, width))
        for group in plan.groups:
            rows = slice(group.first, group.last)
            mask = _mask(bias.detach(), group).to(q.dtype)[None]  # one that needs a gradient, no fused kernel takes
            found = F.scaled_dot_product_attention(q[rows], k[rows], v[rows], attn_mask=mask)
            out[rows] = found.transpose(1, 2)
        out = out.view(windows * size, heads * width).index_select(0, plan.scatter)
        ctx.save_for_backward(qkv, empty, bias, out)
        ctx.plan = plan
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of qkv, empty and bias."""
        qkv, empty, bias, out = ctx.saved_tensors
        plan, heads = ctx.plan, len(bias)
        q, k, v = _in_windows(qkv, empty, plan, heads, parts=3).unbind()
        windows, _, size, width = q.shape
        nothing = gradient.new_zeros(heads * width)
        d_out = _in_windows(gradient, nothing, plan, heads)[0]
        mean = (gradient * out).view(-1, heads, width).sum(-1)
        mean = _in_windows(mean, nothing[:heads], plan, heads)[0]
        d_bias = torch.zeros(bias.shape, dtype=torch.promote_types(bias.dtype, torch.float32), device=bias.device)
        d_qkv = qkv.new_empty((windows, size, 3, heads, width))
        d_q, d_k, d_v = d_qkv.permute(2, 0, 3, 1, 4).unbind()
        scale = width**-0.5
        for rows, mask in _chunks(plan, bias):
            maps = torch.matmul(q[rows] * scale, k[rows].mT).to(d_bias.dtype)
            maps = maps.add_(mask).softmax(-1)
            d_v[rows] = torch.matmul(maps.to(q.dtype).mT, d_out[rows])
            d_maps = torch.matmul(d_out[rows], v[rows].mT).to(d_bias.dtype)
            d_maps.sub_(mean[rows]).mul_(maps)
            d_bias += d_maps.sum(0)
            d_maps = d_maps.to(q.dtype)
            d_q[rows] = torch.matmul(d_maps, k[rows]).mul_(scale)
            d_k[rows] = torch.matmul(d_maps.mT, q[rows]).mul_(scale)
        d_qkv = d_qkv.view(windows * size, -1)
        d_empty = d_qkv[plan.padding].sum(0).to(empty.dtype)
        return d_qkv.index_select(0, plan.scatter), d_empty, d_bias.to(bias.dtype), None


def _in_windows(tokens: Tensor, empty: Tensor, plan: WindowPlan, heads: int, *, parts: int = 1) -> Tensor:
    """[tokens, parts heads d] -> [parts, windows, heads, n, d], with `empty` [parts heads d] at places without a token."""
    cut = tokens.index_select(0, plan.gather)
    if len(plan.padding):
        cut[plan.padding] = empty.to(cut.dtype)
    return cut.view(-1, plan.size, parts, heads, tokens.shape[1] // (parts * heads)).permute(2, 0, 3, 1, 4)


def _mask(bias: Tensor, group: Group) -> Tensor:
    """[heads, n, n]: what is added to the maps of a group."""
    return bias if group.mask is None else bias + group.mask.to(bias.dtype)


def _chunks(plan: WindowPlan, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Windows of one group, few enough that their maps fit into the cache, and what is added to these."""
    most = CHUNK_BYTES.get(bias.device.type, CHUNK_BYTES_ELSEWHERE)
    chunk = max(1, most // (len(bias) * plan.size**2 * 4))
    for group in plan.groups:
        mask = _mask(bias, group).to(torch.promote_types(bias.dtype, torch.float32))
        for first in range(group.first, group.last, chunk):
            yield slice(first, min(first + chunk, group.last)), mask
