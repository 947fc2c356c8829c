"""From a padded set of vectors to fewer: sentences from tokens, one vector from sentences or image tokens."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.models.attention import MaskedAttention


def sentence_means(tokens: Tensor, sentence_index: Tensor, sentences: int, *, weights: Tensor | None = None) -> Tensor:
    """Mean of the tokens [B, T, d] of each sentence, [B, S, d], S = `sentences`; zero for a sentence without tokens.

    sentence_index int64 [B, T], -1 = of no sentence; weights [B, T] weigh the tokens of a mean.
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
    """Mean over the real vectors of [B, S, d], [B, d]; zero where there is none. mask bool [B, S]."""
    weight = mask[..., None].to(vectors.dtype)
    return (vectors * weight).sum(1) / weight.sum(1).clamp(min=1)


class AttentionPool(nn.Module):
    """One vector from any number of tokens, read by learned queries.

    Args:
        queries: how many; more than one are brought together by a linear layer.
        may_be_empty: a sample may have no token; a learned vector then stands for it.
    """

    def __init__(self, width: int, heads: int, *, queries: int = 1, may_be_empty: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # Long queries look at different tokens from the start; short ones would see the mean, where patients hardly differ.
        self.queries = nn.Parameter(3.0 * torch.randn(queries, width))
        self.attention = MaskedAttention(width, heads)
        self.join = nn.Linear(queries * width, width) if queries > 1 else nn.Identity()
        self.empty = nn.Parameter(0.02 * torch.randn(width)) if may_be_empty else None

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, d] for tokens [B, n, d]; mask bool [B, n], True = real."""
        read = self.attention(self.queries.expand(len(tokens), -1, -1), self.norm(tokens), mask)
        pooled = self.join(read.flatten(1))
        if mask is None or self.empty is None:
            return pooled
        return torch.where(mask.any(1, keepdim=True), pooled, self.empty.to(pooled.dtype))


class PlacePool(nn.Module):
    """One vector from the tokens of a grid by a linear map of its own for every place; for one volume size only.

    Learns from few patients what stands in a fixed place, where attention first has to find the place. The maps share their
    first factor, which brings a token to a quarter of its width.
    """

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.norm = nn.LayerNorm(width)
        self.reduce = nn.Linear(width, width // 4)
        self.join = nn.Linear(tokens * (width // 4), width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, d] for tokens [B, n, d] with the n it was built for."""
        _refuse_other_count(tokens, self.tokens)
        return self.join(self.reduce(self.norm(tokens)).flatten(1))


class CollapsePool(nn.Module):
    """The released image pooler (`Swin_Pooler`): one weight per token position, linear, tanh; for one volume size only."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.fc = nn.Linear(tokens, 1)
        self.dense = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, d] for tokens [B, n, d] with the n it was built for."""
        _refuse_other_count(tokens, self.fc.in_features)
        return torch.tanh(self.dense(self.fc(tokens.transpose(1, 2))[..., 0]))


class SentenceAttentionPool(nn.Module):
    """The released report pooler: the mean of the sentences attends to itself and to them; 8 heads, no position."""

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, sentences: Tensor, mask: Tensor) -> Tensor:
        """[B, d] for sentences [B, S, d]; mask bool [B, S], True = real."""
        mean = masked_mean(sentences, mask)[:, None]
        everything = torch.cat([mean, sentences], 1)
        query, key, value = (
            rearrange(part, "b n (h c) -> b h n c", h=self.heads)
            for part in (self.q_proj(mean), self.k_proj(everything), self.v_proj(everything))
        )
        keep = F.pad(mask, (1, 0), value=True)[:, None, None, :]
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=keep)
        return self.c_proj(rearrange(read, "b h 1 c -> b (h c)"))


class MeanPool(nn.Module):
    """The released pooler of gated sentences (`Swin_Att_Pooler`): mean, linear, tanh."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, sentences: Tensor, mask: Tensor) -> Tensor:
        """[B, d] for sentences [B, S, d]; mask bool [B, S], True = real."""
        return torch.tanh(self.dense(masked_mean(sentences, mask)))


class SentencePool(nn.Module):
    """The released `Sentence_Pooler`: each gated sentence brought to the width in which sentences are compared."""

    def __init__(self, width: int, sentence_width: int) -> None:
        super().__init__()
        # The original's BatchNorm1d on [1, S, C] normalises each sentence over its channels.
        norm = nn.LayerNorm(width // 2, elementwise_affine=False)
        self.dense = nn.Sequential(nn.Linear(width, width // 2), norm, nn.GELU(), nn.Linear(width // 2, sentence_width))

    def forward(self, sentences: Tensor) -> Tensor:
        """[..., d] -> [..., sentence_width], in (-1, 1)."""
        return torch.tanh(self.dense(sentences))


def _refuse_other_count(tokens: Tensor, expected: int) -> None:
    if tokens.shape[1] != expected:
        raise ValueError(
            f"this pooler was built for {expected} image tokens and got {tokens.shape[1]}; "
            "give the volume the size that volume_shape names"
        )
