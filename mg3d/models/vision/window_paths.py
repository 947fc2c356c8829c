"""Implementations of biased attention, and the choice among them by a self-check on the device.

qkv is [3, windows, heads, n, d]; the bias [1 or windows, heads, n, n] is added to the logits; outputs are [windows, heads, n, d].
"""

import time
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mg3d.precision import without_autocast

ALIGNMENT = 16
"""Values to whose multiple rows of a bias are padded in memory on a GPU; its kernels refuse or copy others."""
TOLERANCE = {torch.float64: 0.01, torch.float32: 0.01, torch.float16: 0.01, torch.bfloat16: 0.05}
"""Largest difference in a self-check as a fraction of the largest value; TF32 is allowed in float32."""
REPEATS = 5


class AttentionPath(NamedTuple):
    """One implementation of attention and its gradient."""

    name: str
    forward: Callable[[Tensor, Tensor], Tensor]
    """(qkv, bias) -> output."""
    backward: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """(qkv, gradient of the output, bias, d_bias) -> gradient of qkv [windows n, 3 heads d]; adds to d_bias [heads, n, n]."""
    has_exact_bias: bool
    """Whether `backward` takes the bias in at least float32; else in the precision of qkv."""


def plain_attention(qkv: Tensor, bias: Tensor) -> Tensor:
    """Attention with its maps in memory."""
    q, k, v = qkv.unbind()
    logits = torch.matmul(q * q.shape[-1] ** -0.5, k.mT).to(torch.promote_types(q.dtype, torch.float32)) + bias
    return torch.matmul(logits.softmax(-1).to(v.dtype), v)


def fused_attention(qkv: Tensor, bias: Tensor) -> Tensor:
    """Attention with the fastest kernel that PyTorch has for the device."""
    q, k, v = qkv.unbind()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def plain_backward(qkv: Tensor, d_out: Tensor, bias: Tensor, d_bias: Tensor) -> Tensor:
    """Gradients with the attention maps of all windows in memory."""
    (q, k, v), d_out = qkv.contiguous().unbind(), d_out.contiguous()
    windows, heads, size, width = q.shape
    scale = width**-0.5
    d_qkv = q.new_empty((windows, size, 3, heads, width))
    d_q, d_k, d_v = d_qkv.permute(2, 0, 3, 1, 4).unbind()
    maps = torch.matmul(q * scale, k.mT).to(bias.dtype).add_(bias).softmax(-1)
    d_v.copy_(torch.matmul(maps.to(q.dtype).mT, d_out))
    d_maps = torch.matmul(d_out, v.mT).to(bias.dtype)
    d_maps = torch.ops.aten._softmax_backward_data(d_maps, maps, -1, maps.dtype)
    d_bias += d_maps.sum(0)
    d_maps = d_maps.to(q.dtype)
    d_q.copy_(torch.matmul(d_maps, k).mul_(scale))
    d_k.copy_(torch.matmul(d_maps.mT, q).mul_(scale))
    return d_qkv.view(windows * size, -1)


def fused_backward(qkv: Tensor, d_out: Tensor, bias: Tensor, d_bias: Tensor) -> Tensor:
    """Gradients by CUDA's memory-efficient kernel; of all maps only the gradient of the bias is written, in the dtype of qkv."""
    q, k, v = qkv.transpose(2, 3).unbind()
    windows, size, heads, width = q.shape
    bias = bias.expand(windows, -1, -1, -1)
    dense = (None, None)
    out, statistics, *seeds, _, _ = torch.ops.aten._efficient_attention_forward(
        q, k, v, bias, *dense, *dense, 0.0, 0, compute_log_sumexp=True
    )
    d_q, _, _, d_map = torch.ops.aten._efficient_attention_backward(
        d_out.transpose(1, 2), q, k, v, bias, out, *dense, size, size, statistics, 0.0, *seeds, 0, True,
        shared_storage_dqdkdv=True,
    )  # fmt: skip
    d_bias += d_map.sum(0, dtype=d_bias.dtype)
    # Gradients of queries, keys and values lie next to each other, as their projection does.
    return d_q.as_strided((windows * size, 3 * heads * width), (3 * heads * width, 1))


FUSED = AttentionPath("fused forward and backward", fused_attention, fused_backward, has_exact_bias=False)
FUSED_FORWARD = AttentionPath("fused forward, plain backward", fused_attention, plain_backward, has_exact_bias=True)
PLAIN = AttentionPath("plain", plain_attention, plain_backward, has_exact_bias=True)


@lru_cache
def choose_path(device: torch.device, dtype: torch.dtype) -> AttentionPath:
    """The path for a device and a precision; on CUDA by a self-check on first use, elsewhere always `FUSED_FORWARD`."""
    return self_check(device, dtype, (FUSED, FUSED_FORWARD, PLAIN)) if device.type == "cuda" else FUSED_FORWARD


def padded_empty(shape: Sequence[int], like: Tensor, *, alignment: int) -> Tensor:
    """An uninitialised tensor whose last axis is a multiple of `alignment` long in memory."""
    return like.new_empty((*shape[:-1], -(-shape[-1] // alignment) * alignment))[..., : shape[-1]]


@torch.no_grad()
def self_check(device: torch.device, dtype: torch.dtype, paths: Sequence[AttentionPath]) -> AttentionPath:
    """The fastest of `paths` whose output and gradients equal those of `PLAIN` in float32 on the CPU.

    One small layer, 8 windows of 7 x 7 x 7 tokens, is computed with one bias for all windows and with one for each. Warns of
    paths that fail.

    Raises:
        RuntimeError: all of them fail.
    """
    seconds, failures, samples = {}, [], [_sample(biases, dtype) for biases in (1, 8)]
    with without_autocast(device.type):
        expected = [_outputs(PLAIN, [tensor.float() for tensor in sample]) for sample in samples]
        moved = [[tensor.to(device) for tensor in sample] for sample in samples]
        for path in paths:
            try:
                _require_correct(path, moved, expected, tolerance=TOLERANCE[dtype])
                seconds[path] = min(_seconds(path, moved[0], device) for _ in range(REPEATS))
            except Exception as failure:  # whatever an operator raises, the next path is tried
                failures.append(f"'{path.name}': {str(failure).partition(chr(10))[0]}")
    if not seconds:
        raise RuntimeError(f"window attention computes wrong results on {device} in {dtype}: {'; '.join(failures)}")
    for failure in failures:
        warnings.warn(f"window attention on {device} in {dtype} does not use the path {failure}", stacklevel=2)
    return min(seconds, key=seconds.__getitem__)


def _sample(biases: int, dtype: torch.dtype) -> list[Tensor]:
    """qkv, gradient of the output, and a bias with masked pairs of tokens."""
    generator = torch.Generator().manual_seed(0)
    windows, heads, size, width = 8, 2, 343, 16
    qkv, d_out, bias = (
        torch.randn(shape, generator=generator)
        for shape in ((windows, size, 3, heads, width), (windows, size, heads, width), (biases, heads, size, size))
    )
    sides = torch.arange(size) % 7 < 3
    bias = torch.where(sides[:, None] == sides, bias, -100.0)
    padded = padded_empty(bias.shape, bias.to(dtype), alignment=ALIGNMENT).copy_(bias)
    return [qkv.to(dtype).permute(2, 0, 3, 1, 4), d_out.to(dtype).transpose(1, 2), padded]


def _outputs(path: AttentionPath, sample: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Output, gradient of qkv and gradient of the bias."""
    qkv, d_out, bias = sample
    d_bias = torch.zeros(bias.shape[1:], device=bias.device)
    return path.forward(qkv, bias), path.backward(qkv, d_out, bias.float() if path.has_exact_bias else bias, d_bias), d_bias


def _require_correct(
    path: AttentionPath, samples: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]], *, tolerance: float
) -> None:
    """Raises ArithmeticError if a path computes something else than expected, or NaN."""
    found = [tensor.cpu().float() for sample in samples for tensor in _outputs(path, sample)]
    pairs = zip(found, (tensor for outputs in expected for tensor in outputs), strict=True)
    error = float(torch.stack([(ours - theirs).abs().max() / theirs.abs().max() for ours, theirs in pairs]).max())
    if not error <= tolerance:
        raise ArithmeticError(f"largest error {error:.2g} of the largest value, more than {tolerance:g}")


def _seconds(path: AttentionPath, sample: Sequence[Tensor], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    wait(device)
    start = time.perf_counter()
    _outputs(path, sample)
    wait(device)
    return time.perf_counter() - start
