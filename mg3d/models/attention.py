"""Multi-head attention over a padded, masked set."""

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedAttention(nn.Module):
    """Queries read from the real tokens of their own sample; zero where a sample has none."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be shared evenly among {heads} heads")
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
        readable = mask.any(1, keepdim=True)
        # A softmax over no key is not a number; such a sample reads its padding, and the result is set to zero.
        keep = (mask | ~readable)[:, None, None, :]
        read = self._merge(F.scaled_dot_product_attention(query, key, value, attn_mask=keep))
        return read * readable[..., None]

    def _merge(self, read: Tensor) -> Tensor:
        return self.output(rearrange(read, "b h n c -> b n (h c)"))
