"""Heads of the contrastive branches."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.precision import full_precision

MAX_LOGIT_SCALE = 100.0


class ProjectionHead(nn.Module):
    """LayerNorm, linear layer without bias, L2 normalisation: the embedding of a contrastive loss."""

    def __init__(self, width: int, embedding_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embedding_width, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, width] -> [B, embedding_width], L2-normalised."""
        return F.normalize(full_precision(self.projection(self.norm(vectors))), dim=-1)


class LogitScale(nn.Module):
    """Learned logit scale (1 / temperature), at most 100, and the learned bias of the sigmoid loss.

    InfoNCE starts at 1 / 0.07, without a bias; the sigmoid loss at scale 10 and bias -10 as SigLIP, because nearly all pairs are
    negative.
    """

    def __init__(self, loss: Literal["infonce", "sigmoid"] = "infonce") -> None:
        super().__init__()
        start = 10.0 if loss == "sigmoid" else 1 / 0.07
        self.log_scale = nn.Parameter(torch.tensor(math.log(start)))
        self.bias = nn.Parameter(torch.tensor(-10.0)) if loss == "sigmoid" else None

    def forward(self) -> Tensor:
        """The scale, a scalar."""
        with torch.no_grad():
            # Clamps the parameter: clamping the result would stop its gradient for good once it exceeds the limit.
            self.log_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        return self.log_scale.exp()

    def features(self, prefix: str) -> dict[str, Tensor]:
        """Features `PREFIX_logit_scale` and, with the sigmoid loss, `PREFIX_logit_bias`."""
        bias = {} if self.bias is None else {f"{prefix}_logit_bias": self.bias}
        return {f"{prefix}_logit_scale": self(), **bias}
