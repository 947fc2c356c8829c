"""Attention within shifted windows, forward and backward, without an attention map that outlives its window.

The same function as in MONAI's Swin blocks: a volume of tokens is padded to whole windows, rolled and cut into windows; every
token attends to those of its window that come from the same side of the roll, with a learned bias for each relative place.
Here the tokens of windows are gathered by index instead of padded, rolled and copied; windows that share a mask are computed
together, so that there is one mask for each kind of window instead of one per window; for the backward pass nothing is kept but
the tokens as they came, which are normalised and projected again, a few windows at a time. An operator of its own, which
`torch.compile` takes as it is.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

APART = -100.0
"""Added where two tokens come from different sides of the roll; what MONAI adds, so that results are equal."""
CHUNK_BYTES = {"cpu": 6 << 20}
"""Device -> what is computed at once, projections forward and attention maps backward: on a CPU what stays in its cache."""
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
    absent: Tensor | None
    """bool [windows * n, 1]: places that hold no token; None where all hold one."""
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
    absent = (places < 0)[:, None].to(device) if len(here) < len(places) else None
    return WindowPlan(places.clamp(min=0).to(device), scatter.to(device), absent, tuple(groups), tokens.shape[1])


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


class Parameters(NamedTuple):
    """What attention within windows learns; products are computed in the precision of `weight`."""

    norm_weight: Tensor
    """[C]"""
    norm_bias: Tensor
    """[C]"""
    weight: Tensor
    """[3 C, C]: from normalised tokens to queries, keys and values of all heads."""
    weight_bias: Tensor
    """[3 C]"""
    bias: Tensor
    """[heads, n, n]: added to the attention maps."""


class _Projected(NamedTuple):
    """Some windows."""

    raw: Tensor
    """[windows n, C]"""
    normed: Tensor
    """[windows n, C], zeros at places without a token, as in MONAI."""
    mean: Tensor
    rstd: Tensor
    qkv: Tensor
    """[3, windows, heads, n, d]"""


def attend(
    features: Tensor, parameters: Sequence[Tensor], *, window: Sequence[int], shift: Sequence[int], eps: float
) -> Tensor:
    """softmax(q k' / sqrt(d) + bias) v within windows of normalised features [B, d, h, w, C], in the same shape.

    parameters: as `Parameters`; window and shift: as `clip_window` gives them; eps: of the norm.
    """
    learned, plan = Parameters(*parameters), _plan(features, window, shift)
    heads, channels = len(learned.bias), features.shape[-1]
    tokens = features.reshape(-1, channels)
    out = learned.weight.new_empty((len(plan.gather) // plan.size, plan.size, heads, channels // heads))
    for rows, mask in _chunks(plan, learned.bias, 3 * plan.size * channels, dtype=learned.weight.dtype):
        q, k, v = _project(tokens, learned, plan, rows, eps=eps).qkv.unbind()
        out[rows] = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None]).transpose(1, 2)
    return out.view(-1, channels).index_select(0, plan.scatter).view(features.shape)


window_attention = torch.library.custom_op("mg3d::window_attention", attend, mutates_args=())
"""`attend` as an operator of its own, with a gradient that keeps little."""


@torch.library.custom_op("mg3d::window_attention_backward", mutates_args=())
def window_attention_backward(
    gradient: Tensor, features: Tensor, parameters: Sequence[Tensor], *, window: Sequence[int], shift: Sequence[int], eps: float
) -> list[Tensor]:
    """Gradients of features and parameters, for the gradient of what `window_attention` gave."""
    learned, plan = Parameters(*parameters), _plan(features, window, shift)
    heads, channels = len(learned.bias), features.shape[-1]
    tokens, gradient = features.reshape(-1, channels), gradient.reshape(-1, channels)
    exact = torch.promote_types(learned.bias.dtype, torch.float32)
    sums = Parameters(*(torch.zeros_like(parameter, dtype=exact) for parameter in learned))
    d_tokens = tokens.new_empty((len(plan.gather), channels))
    for rows, mask in _chunks(plan, learned.bias, heads * plan.size**2, dtype=exact):
        part, places = _project(tokens, learned, plan, rows, eps=eps), _places(plan, rows)
        d_out = _without_absent(gradient.index_select(0, plan.gather[places]), plan, places)
        d_out = d_out.view(-1, plan.size, heads, channels // heads).transpose(1, 2).contiguous()
        d_qkv = _attention_backward(part.qkv.contiguous(), d_out, mask, sums.bias)
        sums.weight.add_(d_qkv.mT @ part.normed)
        sums.weight_bias.add_(d_qkv.sum(0))
        d_normed = _without_absent(d_qkv @ learned.weight, plan, places).to(part.raw.dtype)
        found = torch.ops.aten.native_layer_norm_backward(
            d_normed, part.raw, (channels,), part.mean, part.rstd, learned.norm_weight, learned.norm_bias, (True, True, True)
        )
        d_tokens[places] = found[0]
        sums.norm_weight.add_(found[1])
        sums.norm_bias.add_(found[2])
    d_features = d_tokens.index_select(0, plan.scatter).view(features.shape)
    return [d_features, *(total.to(parameter.dtype) for total, parameter in zip(sums, learned, strict=True))]


def _attention_backward(qkv: Tensor, d_out: Tensor, mask: Tensor, d_bias: Tensor) -> Tensor:
    """[windows n, 3 C]: gradient of qkv [3, windows, heads, n, d] for that of the result; that of the bias is added to d_bias."""
    q, k, v = qkv.unbind()
    windows, heads, size, width = q.shape
    scale = width**-0.5
    d_qkv = q.new_empty((windows, size, 3, heads, width))
    d_q, d_k, d_v = d_qkv.permute(2, 0, 3, 1, 4).unbind()
    maps = torch.matmul(q * scale, k.mT).to(mask.dtype).add_(mask).softmax(-1)
    d_v.copy_(torch.matmul(maps.to(q.dtype).mT, d_out))
    d_maps = torch.matmul(d_out, v.mT).to(mask.dtype)
    d_maps = torch.ops.aten._softmax_backward_data(d_maps, maps, -1, maps.dtype)
    d_bias += d_maps.sum(0)
    d_maps = d_maps.to(q.dtype)
    d_q.copy_(torch.matmul(d_maps, k).mul_(scale))
    d_k.copy_(torch.matmul(d_maps.mT, q).mul_(scale))
    return d_qkv.view(windows * size, -1)


@window_attention.register_fake
def _(features: Tensor, parameters: Sequence[Tensor], *, window: Sequence[int], shift: Sequence[int], eps: float) -> Tensor:
    return parameters[2].new_empty(features.shape)


@window_attention_backward.register_fake
def _(
    gradient: Tensor, features: Tensor, parameters: Sequence[Tensor], *, window: Sequence[int], shift: Sequence[int], eps: float
) -> list[Tensor]:
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (features, *parameters)]


def _keep(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    features, parameters = inputs
    ctx.save_for_backward(features, *parameters)
    ctx.how = keyword_only_inputs


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
    features, *parameters = ctx.saved_tensors
    d_features, *d_parameters = window_attention_backward(gradient, features, parameters, **ctx.how)
    return d_features, d_parameters


window_attention.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.mg3d.window_attention)
def _flops(features: Sequence[int], parameters: Sequence[Sequence[int]], *, window: Sequence[int], **_: object) -> int:
    """Of the projection of tokens, and of attention at all places of windows."""
    batch, *shape, channels = features
    windows = batch * math.prod(-(-side // length) for side, length in zip(shape, window, strict=True))
    return 6 * batch * math.prod(shape) * channels**2 + 4 * windows * math.prod(window) ** 2 * channels


def _plan(features: Tensor, window: Sequence[int], shift: Sequence[int]) -> WindowPlan:
    batch, *shape, _ = features.shape
    return plan_windows(batch, tuple(shape), tuple(window), shift=tuple(shift), device=features.device)


def _places(plan: WindowPlan, rows: slice) -> slice:
    return slice(rows.start * plan.size, rows.stop * plan.size)


def _without_absent(tokens: Tensor, plan: WindowPlan, places: slice) -> Tensor:
    """tokens, which are changed: zeros at places without a token."""
    return tokens if plan.absent is None else tokens.masked_fill_(plan.absent[places], 0)


def _project(tokens: Tensor, learned: Parameters, plan: WindowPlan, rows: slice, *, eps: float) -> _Projected:
    """Norm and projection of the windows `rows`."""
    places, channels = _places(plan, rows), tokens.shape[1]
    raw = tokens.index_select(0, plan.gather[places]).to(learned.norm_weight.dtype)
    normed, mean, rstd = torch.native_layer_norm(raw, (channels,), learned.norm_weight, learned.norm_bias, eps)
    normed = _without_absent(normed.to(learned.weight.dtype), plan, places)
    qkv = F.linear(normed, learned.weight, learned.weight_bias)
    heads = len(learned.bias)
    qkv = qkv.view(-1, plan.size, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    return _Projected(raw, normed, mean, rstd, qkv)


def _chunks(plan: WindowPlan, bias: Tensor, each: int, *, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Windows of one group, few enough that `each` numbers per window fit into the cache, and what is added to their maps."""
    bias = bias.detach()  # a mask that needs a gradient, no fused kernel takes
    chunk = max(1, CHUNK_BYTES.get(bias.device.type, CHUNK_BYTES_ELSEWHERE) // (each * 4))
    for group in plan.groups:
        mask = (bias if group.mask is None else bias + group.mask.to(bias.dtype)).to(dtype)
        for first in range(group.first, group.last, chunk):
            yield slice(first, min(first + chunk, group.last)), mask
