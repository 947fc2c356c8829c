"""How one modality is told about the other: cross-attention, or the scalar gates of the released code.

Both take (first [B, n, d], second [B, m, d]) with masks and give both back, so that either can stand in a model.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from mg3d.models.attention import MaskedAttention


class CrossAttentionLayer(nn.Module):
    """A' = A + attention(LN A; LN B), A'' = A' + MLP(LN A')."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_first = nn.LayerNorm(width)
        self.norm_second = nn.LayerNorm(width)
        self.attention = MaskedAttention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, first: Tensor, second: Tensor, second_mask: Tensor | None) -> Tensor:
        """The first set [B, n, d] after reading from the second [B, m, d]; second_mask bool [B, m]."""
        first = first + self.attention(self.norm_first(first), self.norm_second(second), second_mask)
        return first + self.mlp(self.norm_mlp(first))


class CrossAttentionFusion(nn.Module):
    """X(A | B): the first set reads from the second, which comes back as it was."""

    def __init__(self, width: int, *, layers: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CrossAttentionLayer(width, heads) for _ in range(layers))

    def forward(
        self, first: Tensor, second: Tensor, *, first_mask: Tensor | None = None, second_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """([B, n, d], [B, m, d]); masks bool, True = real. `first_mask` changes nothing: no token reads from its own set."""
        for layer in self.layers:
            first = layer(first, second, second_mask)
        return first, second


class GateLayer(nn.Module):
    """Every token's own value times one number: how strongly it agrees, on average, with the tokens of the other set.

    No value of the other set is ever read. The original's `local_*_cross_multihead_attention` without its loops over tokens;
    names and shapes of the parameters are the original's (1 = first set, 2 = second), without its unused `fc1`, `fc2`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query1 = nn.Linear(width, width)
        self.key1 = nn.Linear(width, width)
        self.value1 = nn.Linear(width, width)
        self.query2 = nn.Linear(width, width)
        self.key2 = nn.Linear(width, width)
        self.value2 = nn.Linear(width, width)

    def forward(
        self, first: Tensor, second: Tensor, first_mask: Tensor | None, second_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both sets [B, n, d] and [B, m, d], gated; a token without anything real on the other side keeps its value."""
        gate_first = _mean_agreement(self.query1(first), self.key2(second), second_mask)
        gate_second = _mean_agreement(self.query2(second), self.key1(first), first_mask)
        return self.value1(first) * gate_first, self.value2(second) * gate_second


class GateFusion(nn.Module):
    """The released fusion: stacked gates on both sets, no residual, no normalisation.

    Args:
        second_is_read: someone reads the second set afterwards; otherwise what only it needs is kept, for the names of the
            released weights, but not trained.
    """

    def __init__(self, width: int, *, layers: int, second_is_read: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GateLayer(width) for _ in range(layers))
        if not second_is_read:
            last = self.layers[-1]
            for part in (last.query2, last.key1, last.value2):
                part.requires_grad_(False)

    def forward(
        self, first: Tensor, second: Tensor, *, first_mask: Tensor | None = None, second_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """([B, n, d], [B, m, d]); masks bool, True = real; without a mask every token counts, padding too."""
        for layer in self.layers:
            first, second = layer(first, second, first_mask, second_mask)
        return first, second


def build_fusion(
    kind: Literal["cross_attention", "gate"], width: int, *, layers: int, heads: int, second_is_read: bool = True
) -> nn.Module:
    """The fusion of this kind; `heads` is for cross-attention alone, `second_is_read` for gates."""
    if kind == "cross_attention":
        return CrossAttentionFusion(width, layers=layers, heads=heads)
    if kind == "gate":
        return GateFusion(width, layers=layers, second_is_read=second_is_read)
    raise ValueError(f"fusion={kind!r} is not known; choose 'cross_attention' or 'gate'")


def _mean_agreement(queries: Tensor, keys: Tensor, key_mask: Tensor | None) -> Tensor:
    """Mean over the real keys [B, m, d] of the sigmoid agreement with each query [B, n, d]: [B, n, 1]; 1 without any."""
    agreement = torch.sigmoid(queries @ keys.transpose(1, 2) / math.sqrt(queries.shape[-1]))
    if key_mask is None:
        return agreement.mean(-1, keepdim=True)
    weight = key_mask[:, None, :].to(agreement.dtype)
    count = weight.sum(-1, keepdim=True)
    return torch.where(count > 0, (agreement * weight).sum(-1, keepdim=True) / count.clamp(min=1), 1.0)
