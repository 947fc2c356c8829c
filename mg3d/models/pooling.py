"""Pooling: sentences from tokens, one vector from sentences or image tokens."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mg3d.models.fusion import MaskedAttention
from mg3d.settings.schema import ModelSettings


def sentence_means(tokens: Tensor, sentence_index: Tensor, sentences: int, *, weights: Tensor | None = None) -> Tensor:
    """Mean over the tokens [B, T, d] of each sentence, [B, S, d], S = `sentences`; zero for a sentence without tokens.

    sentence_index int64 [B, T], -1 = no sentence; weights [B, T]: of the tokens within a mean.
    """
    member = sentence_membership(sentence_index, sentences).to(tokens.dtype)
    if weights is not None:
        member = member * weights[..., None].to(tokens.dtype)
    total = member.sum(1)[..., None]
    return member.transpose(1, 2) @ tokens / torch.where(total > 0, total, 1.0)


def sentence_membership(sentence_index: Tensor, sentences: int) -> Tensor:
    """bool [B, T, S]: token t belongs to sentence s."""
    return sentence_index[..., None] == torch.arange(sentences, device=sentence_index.device)


def masked_mean(vectors: Tensor, mask: Tensor) -> Tensor:
    """Mean [B, d] over the real vectors of [B, S, d]; zero without any. mask bool [B, S]."""
    weight = mask[..., None].to(vectors.dtype)
    return (vectors * weight).sum(1) / weight.sum(1).clamp(min=1)


class AttentionPool(nn.Module):
    """Attention pooling with learned queries, for any number of tokens.

    Args:
        queries: number of queries; several are concatenated and projected.
        may_be_empty: learn a vector for samples without tokens.
    """

    def __init__(self, width: int, heads: int, *, queries: int = 1, may_be_empty: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # Long queries attend to different tokens from the start; short ones start at the mean, in which patients hardly differ.
        self.queries = nn.Parameter(3.0 * torch.randn(queries, width))
        self.attention = MaskedAttention(width, heads)
        self.join = nn.Linear(queries * width, width) if queries > 1 else nn.Identity()
        self.empty = nn.Parameter(0.02 * torch.randn(width)) if may_be_empty else None

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, d] for tokens [B, n, d]; mask bool [B, n], True = real token."""
        read = self.attention(self.queries.expand(len(tokens), -1, -1), self.norm(tokens), mask)
        pooled = self.join(read.flatten(1))
        if mask is None or self.empty is None:
            return pooled
        return torch.where(mask.any(1, keepdim=True), pooled, self.empty.to(pooled.dtype))


class PositionalPool(nn.Module):
    """A separate linear map for every grid position, for a fixed volume size.

    Learns findings at fixed positions from few patients, where attention first has to find the position. The maps share a first
    factor, which reduces tokens to a quarter of their width.
    """

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.norm = nn.LayerNorm(width)
        self.reduce = nn.Linear(width, width // 4)
        self.join = nn.Linear(tokens * (width // 4), width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, d] for tokens [B, n, d]; ValueError unless n is the number of tokens that it was built for."""
        check_token_count(tokens, self.tokens)
        return self.join(self.reduce(self.norm(tokens)).flatten(1))


def build_image_pool(settings: ModelSettings, grid: Sequence[int]) -> nn.Module:
    """The pool of `settings.image_pool` for image tokens of this grid (z, y, x)."""
    if settings.image_pool == "positional":
        return PositionalPool(settings.hidden_size, math.prod(grid))
    return AttentionPool(settings.hidden_size, settings.fusion_heads, queries=settings.pool_queries)


def check_token_count(tokens: Tensor, expected: int) -> None:
    """Raises ValueError unless tokens [B, n, d] have n = `expected`."""
    if tokens.shape[1] != expected:
        raise ValueError(
            f"the volumes have {tokens.shape[1]} image tokens, the pooling layer was built for {expected}. "
            "Use volumes of the model's volume_shape."
        )
