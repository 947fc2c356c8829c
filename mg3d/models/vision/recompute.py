"""Per-token layers in chunks, recomputed in the backward pass."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = {"cpu": 4 << 20}
"""Device -> size of the widest activation of a chunk; on a CPU it should fit into the cache."""
CHUNK_BYTES_ELSEWHERE = 1 << 30


class PerToken(torch.autograd.Function):
    """layers(tokens), storing only the tokens for the backward pass.

    For layers whose activations are several times larger than their input: less memory and memory traffic for one more forward
    computation.
    """

    @staticmethod
    def forward(ctx: Any, layers: Sequence[nn.Module], widest: int, tokens: Tensor, *parameters: Tensor) -> Tensor:
        """[T, C] of tokens [T, C]; parameters: trained ones of `layers`; widest: largest number of channels of a layer."""
        ctx.layers, ctx.widest = layers, widest
        ctx.save_for_backward(tokens, *parameters)
        kind = tokens.device.type
        mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        ctx.autocast = {"device_type": kind, "dtype": torch.get_autocast_dtype(kind)} if mixed else None
        return torch.cat([_through(layers, part) for part in _parts(tokens, widest)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of tokens and parameters."""
        tokens, *parameters = ctx.saved_tensors
        d_tokens = torch.empty_like(tokens)
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        parts = zip(_parts(tokens, ctx.widest), _parts(d_tokens, ctx.widest), _parts(gradient, ctx.widest), strict=True)
        for part, d_part, d_out in parts:
            with torch.enable_grad(), torch.autocast(**ctx.autocast) if ctx.autocast else nullcontext():
                part = part.detach().requires_grad_()
                out = _through(ctx.layers, part)
                found = torch.autograd.grad(out, [part, *parameters], d_out)
            d_part.copy_(found[0])
            for total, more in zip(sums, found[1:], strict=True):
                total += more
        return None, None, d_tokens, *sums


def _through(layers: Sequence[nn.Module], tokens: Tensor) -> Tensor:
    for layer in layers:
        tokens = layer(tokens)
    return tokens


def _parts(tokens: Tensor, widest: int) -> tuple[Tensor, ...]:
    most = CHUNK_BYTES.get(tokens.device.type, CHUNK_BYTES_ELSEWHERE)
    return tokens.split(max(1, most // (widest * 4)))


def per_token(layers: Sequence[nn.Module], tokens: Tensor, *, widest: int) -> Tensor:
    """layers(tokens) for tokens [..., C], layers that look at each token alone and draw nothing at random."""
    if not torch.is_grad_enabled():
        return _through(layers, tokens)
    if torch.compiler.is_compiling():  # the compiler fuses what chunks keep in the cache
        return checkpoint(_through, layers, tokens, use_reentrant=False)
    parameters = [parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad]
    return PerToken.apply(layers, widest, tokens.reshape(-1, tokens.shape[-1]), *parameters).unflatten(0, tokens.shape[:-1])
