"""Shifted-window attention, forward and backward, without storing attention maps.

Equal to MONAI's Swin blocks: a volume of tokens is padded to whole windows, rolled and partitioned into windows; every token
attends to the tokens of its window that come from the same side of the roll, with a relative position bias. Differences:

* tokens are gathered by index instead of being padded, rolled and copied;
* windows with the same mask are computed together, with one mask per group; on a GPU small groups are merged;
* only the input is stored; norm and projections are recomputed in the backward pass, a few windows at a time.

Registered as a custom operator, so that `torch.compile` does not trace into it.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from mg3d.models.vision.window_paths import ALIGNMENT, AttentionPath, choose_path, padded_empty

APART = -100.0
"""Attention bias between tokens from different sides of the roll, as in MONAI."""
MAX_WINDOW_HEADS = 65_535
"""Windows x heads of a kernel launch on CUDA."""


class Limits(NamedTuple):
    """How windows are divided into chunks."""

    chunk_bytes: int
    """Of the projections (forward) or attention maps (backward) of a chunk, in float32; on a CPU it should fit into the cache."""
    merged_bytes: int
    """Groups are merged, with a bias for every window, while these biases are not larger: fewer launches for few windows."""
    alignment: int
    """Of the rows of a bias, in values."""


LIMITS = {"cpu": Limits(6 << 20, 0, 1)}
"""By type of device."""
GPU_LIMITS = Limits(512 << 20, 64 << 20, ALIGNMENT)


class Group(NamedTuple):
    """Windows of a batch that share an attention mask."""

    first: int
    last: int
    """Range of windows."""
    mask: Tensor | None
    """float32 [n, n], 0 or APART; None if all tokens come from one side of the roll."""


class WindowPlan(NamedTuple):
    """Partition of the tokens of a batch into windows."""

    gather: Tensor
    """int64 [windows * n]: index of the token at each window position, 0 for padding."""
    scatter: Tensor
    """int64 [windows * n]: the same, with B * tokens for padding: the index of a row that is dropped."""
    absent: Tensor
    """int64 [padding]: padded window positions, ascending."""
    absent_before: tuple[int, ...]
    """[windows + 1]: number of padded positions before each window."""
    groups: tuple[Group, ...]
    size: int
    """n, tokens per window."""


def clip_window(shape: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and shift for a grid of tokens; axes not longer than the window are one window, without a shift."""
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
    """Windows of `batch` grids of `shape` tokens (z, y, x), rolled by `shift` tokens towards the origin.

    window and shift: from `clip_window`. Windows are ordered by mask, then by position, then by volume.
    """
    padded = [-(-side // length) * length for side, length in zip(shape, window, strict=True)]
    z, y, x = torch.meshgrid(*((torch.arange(n) + step) % n for n, step in zip(padded, shift, strict=True)), indexing="ij")
    inside = (z < shape[0]) & (y < shape[1]) & (x < shape[2])
    tokens = _cut(torch.where(inside, (z * shape[1] + y) * shape[2] + x, -1), window)
    sides = _cut(_sides(padded, shift), window)
    kinds, which = torch.unique(sides[:, :, None] != sides[:, None], dim=0, return_inverse=True)
    order = torch.argsort(which, stable=True)
    count = shape[0] * shape[1] * shape[2]
    of_batch = count * torch.arange(batch).view(1, -1, 1)
    chosen = tokens[order][:, None]
    positions = torch.where(chosen >= 0, chosen + of_batch, -1).flatten()
    is_absent = positions < 0
    groups, first = [], 0
    for apart, windows in zip(kinds, torch.bincount(which).tolist(), strict=True):
        mask = (apart.float() * APART).to(device) if apart.any() else None
        groups.append(Group(first * batch, (first + windows) * batch, mask))
        first += windows
    return WindowPlan(
        positions.clamp(min=0).to(device),
        positions.masked_fill(is_absent, batch * count).to(device),
        is_absent.nonzero()[:, 0].to(device),
        (0, *is_absent.view(-1, tokens.shape[1]).sum(1).cumsum(0).tolist()),
        tuple(groups),
        tokens.shape[1],
    )


def _sides(padded: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Label of each token of the rolled grid, equal for tokens from the same side of the roll along every axis."""
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
    """Parameters of window attention; products are computed in the precision of `weight`."""

    norm_weight: Tensor
    """[C]"""
    norm_bias: Tensor
    """[C]"""
    weight: Tensor
    """[3 C, C]: queries, keys and values of all heads."""
    weight_bias: Tensor
    """[3 C]"""
    bias: Tensor
    """[heads, n, n]: relative position bias."""


class _Projected(NamedTuple):
    """Queries, keys and values of a chunk of windows."""

    raw: Tensor
    """[windows n, C]"""
    normed: Tensor
    """[windows n, C], zero at padding, as in MONAI."""
    mean: Tensor
    rstd: Tensor
    qkv: Tensor
    """[3, windows, heads, n, d]"""


def attend(
    features: Tensor, parameters: Sequence[Tensor], *, window: Sequence[int], shift: Sequence[int], eps: float
) -> Tensor:
    """softmax(q k' / sqrt(d) + bias) v within windows of normalised features [B, d, h, w, C], in the same shape.

    parameters: as `Parameters`; window and shift: from `clip_window`; eps: of the norm.
    """
    learned, plan = Parameters(*parameters), _plan(features, window, shift)
    tokens, channels = features.flatten(0, -2), features.shape[-1]
    out = learned.weight.new_empty((len(tokens) + 1, channels))
    path = choose_path(features.device, learned.weight.dtype)
    for rows, bias in _chunks(plan, learned.bias, 3 * plan.size * channels, dtype=learned.weight.dtype):
        attended = path.forward(_project(tokens, learned, plan, rows, eps=eps).qkv, bias)
        out[plan.scatter[_positions(plan, rows)]] = attended.transpose(1, 2).reshape(-1, channels)
    return out[:-1].view(features.shape)


window_attention = torch.library.custom_op("mg3d::window_attention", attend, mutates_args=())
"""`attend` as a custom operator that stores only its inputs for the backward pass."""


def attend_backward(
    gradient: Tensor, features: Tensor, parameters: Sequence[Tensor], *, window: Sequence[int], shift: Sequence[int], eps: float
) -> list[Tensor]:
    """Gradients of features and parameters."""
    learned = Parameters(*parameters)
    path = choose_path(features.device, learned.weight.dtype)
    return window_gradients(gradient, features, learned, _plan(features, window, shift), path=path, eps=eps)


def window_gradients(
    gradient: Tensor, features: Tensor, learned: Parameters, plan: WindowPlan, *, path: AttentionPath, eps: float
) -> list[Tensor]:
    """`attend_backward` with this plan and path."""
    heads, channels = len(learned.bias), features.shape[-1]
    tokens, gradient = features.flatten(0, -2), gradient.flatten(0, -2)
    exact = torch.promote_types(learned.bias.dtype, torch.float32)
    sums = Parameters(*(torch.zeros_like(parameter, dtype=exact) for parameter in learned))
    d_tokens = tokens.new_empty((len(tokens) + 1, channels))
    bias_dtype = exact if path.has_exact_bias else learned.weight.dtype
    for rows, bias in _chunks(plan, learned.bias, heads * plan.size**2, dtype=bias_dtype):
        part, positions = _project(tokens, learned, plan, rows, eps=eps), _positions(plan, rows)
        d_out = _without_absent(gradient.index_select(0, plan.gather[positions]), plan, rows)
        d_out = d_out.view(-1, plan.size, heads, channels // heads).transpose(1, 2)
        d_qkv = path.backward(part.qkv, d_out, bias, sums.bias)
        sums.weight.add_(d_qkv.mT @ part.normed)
        sums.weight_bias.add_(d_qkv.sum(0))
        d_normed = _without_absent(d_qkv @ learned.weight, plan, rows).to(part.raw.dtype)
        norm = (parameter.to(part.raw.dtype) for parameter in (learned.norm_weight, learned.norm_bias))
        found = torch.ops.aten.native_layer_norm_backward(
            d_normed, part.raw, (channels,), part.mean, part.rstd, *norm, (True, True, True)
        )
        d_tokens[plan.scatter[positions]] = found[0]
        sums.norm_weight.add_(found[1])
        sums.norm_bias.add_(found[2])
    d_features = d_tokens[:-1].view(features.shape)
    return [d_features, *(total.to(parameter.dtype) for total, parameter in zip(sums, learned, strict=True))]


window_attention_backward = torch.library.custom_op("mg3d::window_attention_backward", attend_backward, mutates_args=())


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
    ctx.options = keyword_only_inputs


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
    features, *parameters = ctx.saved_tensors
    d_features, *d_parameters = window_attention_backward(gradient, features, parameters, **ctx.options)
    return d_features, d_parameters


window_attention.register_autograd(_backward, setup_context=_keep)


def _count_products(features: Sequence[int], window: Sequence[int]) -> tuple[int, int]:
    """FLOPs of one projection of all tokens to queries, keys and values, and of one product of all windows."""
    batch, *shape, channels = features
    windows = batch * math.prod(-(-side // length) for side, length in zip(shape, window, strict=True))
    return 6 * batch * math.prod(shape) * channels**2, 2 * windows * math.prod(window) ** 2 * channels


@register_flop_formula(torch.ops.mg3d.window_attention)
def _flops(features: Sequence[int], parameters: Sequence[Sequence[int]], *, window: Sequence[int], **_: object) -> int:
    projection, product = _count_products(features, window)
    return projection + 2 * product


@register_flop_formula(torch.ops.mg3d.window_attention_backward)
def _backward_flops(
    gradient: Sequence[int], features: Sequence[int], parameters: Sequence[Sequence[int]], *, window: Sequence[int], **_: object
) -> int:
    projection, product = _count_products(features, window)
    return 3 * projection + 5 * product  # one of each is recomputed


def _plan(features: Tensor, window: Sequence[int], shift: Sequence[int]) -> WindowPlan:
    batch, *shape, _ = features.shape
    return plan_windows(batch, tuple(shape), tuple(window), shift=tuple(shift), device=features.device)


def _positions(plan: WindowPlan, rows: slice) -> slice:
    return slice(rows.start * plan.size, rows.stop * plan.size)


def _without_absent(tokens: Tensor, plan: WindowPlan, rows: slice) -> Tensor:
    """Sets tokens at padding of the windows `rows` to zero, in place."""
    first, last = plan.absent_before[rows.start], plan.absent_before[rows.stop]
    return tokens.index_fill_(0, plan.absent[first:last] - rows.start * plan.size, 0) if last > first else tokens


def _project(tokens: Tensor, learned: Parameters, plan: WindowPlan, rows: slice, *, eps: float) -> _Projected:
    """Norm and projections of the windows `rows`."""
    raw, channels = tokens.index_select(0, plan.gather[_positions(plan, rows)]), tokens.shape[1]
    norm = (parameter.to(raw.dtype) for parameter in (learned.norm_weight, learned.norm_bias))
    normed, mean, rstd = torch.native_layer_norm(raw, (channels,), *norm, eps)
    normed = _without_absent(normed.to(learned.weight.dtype), plan, rows)
    qkv = F.linear(normed, learned.weight, learned.weight_bias)
    heads = len(learned.bias)
    qkv = qkv.view(-1, plan.size, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    return _Projected(raw, normed, mean, rstd, qkv)


def _chunks(plan: WindowPlan, bias: Tensor, each: int, *, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of windows, with `each` values per window, and their attention bias [1 or windows, heads, n, n]."""
    bias = bias.detach()  # fused kernels do not accept masks that require a gradient
    limits, heads = LIMITS.get(bias.device.type, GPU_LIMITS), len(bias)
    chunk = min(max(1, limits.chunk_bytes // (each * 4)), MAX_WINDOW_HEADS // heads)
    like = bias.new_empty(0, dtype=dtype)
    for groups in _merged(plan.groups, limits.merged_bytes // (bias.numel() * like.element_size())):
        first, last, is_shared = groups[0].first, groups[-1].last, len(groups) == 1
        biases = padded_empty((1 if is_shared else last - first, *bias.shape), like, alignment=limits.alignment)
        for group in groups:
            biases[group.first - first : group.last - first] = bias if group.mask is None else bias + group.mask.to(bias.dtype)
        for start in range(first, last, chunk):
            rows = slice(start, min(start + chunk, last))
            yield rows, biases if is_shared else biases[rows.start - first : rows.stop - first]


def _merged(groups: Sequence[Group], most: int) -> list[list[Group]]:
    """Consecutive groups of together at most `most` windows; larger ones alone."""
    merged: list[list[Group]] = []
    for group in groups:
        if merged and group.last - merged[-1][0].first <= most:
            merged[-1].append(group)
        else:
            merged.append([group])
    return merged
