"""Cross-attention from one modality to the other."""

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedAttention(nn.Module):
    """Multi-head attention over the real tokens of a sample; zero for samples without any."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, n, d] for queries [B, n, d] and tokens [B, m, d]; mask bool [B, m], True = real token."""
        query, key, value = (
            rearrange(part, "b n (h c) -> b h n c", h=self.heads)
            for part in (self.query(queries), self.key(tokens), self.value(tokens))
        )
        if mask is None:
            return self._merge(F.scaled_dot_product_attention(query, key, value))
        has_tokens = mask.any(1, keepdim=True)
        # Softmax over no key is NaN: such a sample attends to its padding, and the output is set to zero.
        visible = (mask | ~has_tokens)[:, None, None, :]
        read = self._merge(F.scaled_dot_product_attention(query, key, value, attn_mask=visible))
        return read * has_tokens[..., None]

    def _merge(self, read: Tensor) -> Tensor:
        return self.output(rearrange(read, "b h n c -> b n (h c)"))


class CrossAttentionLayer(nn.Module):
    """Pre-norm cross-attention and MLP: A' = A + attention(LN A; LN B), A'' = A' + MLP(LN A')."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_first = nn.LayerNorm(width)
        self.norm_second = nn.LayerNorm(width)
        self.attention = MaskedAttention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, first: Tensor, second: Tensor, second_mask: Tensor | None) -> Tensor:
        """Tokens [B, n, d] after reading `second` [B, m, d]; second_mask bool [B, m]."""
        first = first + self.attention(self.norm_first(first), self.norm_second(second), second_mask)
        return first + self.mlp(self.norm_mlp(first))


class CrossAttentionFusion(nn.Module):
    """Stacked cross-attention layers; the second set is not changed."""

    def __init__(self, width: int, *, layers: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CrossAttentionLayer(width, heads) for _ in range(layers))

    def forward(self, first: Tensor, second: Tensor, second_mask: Tensor | None = None) -> Tensor:
        """Tokens [B, n, d] after reading `second` [B, m, d]; second_mask bool [B, m], True = real token."""
        for layer in self.layers:
            first = layer(first, second, second_mask)
        return first
