"""Which image tokens a sentence is about, told in two ways."""

import torch
from torch import Tensor

from mg3d.models.aggregation import ImageAggregation
from mg3d.models.mg3d import MG3D
from mg3d.models.pooling import sentence_means

Texts = tuple[Tensor, Tensor, Tensor]
"""ids int64 [S, T], attention mask bool [S, T], sentence index int64 [S, T]: S texts that are one sentence each."""


def decisive_shares(model: MG3D, image: Tensor, directions: Tensor) -> Tensor:
    """Shares [B, S, N] of image tokens [B, N, d] in what speaks for each direction [S, E] of the space of CML.

    What a token speaks for it is what the product of embedding and direction loses when the mean of its scan's tokens stands in
    its place; tokens that lower it count as 0. Even where none raises it.
    """
    mean = image.mean(1)
    whole, parts = _towards(model, image, directions), []
    for place in range(image.shape[1]):
        without = image.clone()
        without[:, place] = mean
        parts.append(whole - _towards(model, without, directions))
    lost = torch.stack(parts, -1).clamp(min=0)
    total = lost.sum(-1, keepdim=True)
    return torch.where(total > 0, lost / total.clamp(min=torch.finfo(lost.dtype).tiny), 1 / image.shape[1])


def _towards(model: MG3D, image: Tensor, directions: Tensor) -> Tensor:
    return model.contrast.embed_image(image) @ directions.T


def attended_shares(model: MG3D, image: Tensor, texts: Texts) -> Tensor | None:
    """Attention [B, S, N] from each sentence to image tokens [B, N, d]; None for a model whose sentences do not attend to them:
    it was trained without DCL and SSM, or aggregates as the released one."""
    if not isinstance(model.aggregation, ImageAggregation):
        return None
    ids, mask, index = texts
    asked = sentence_means(model.encode_report(ids, mask), index, 1)[:, 0].expand(len(image), -1, -1)
    everyone = torch.ones(asked.shape[:2], dtype=torch.bool, device=image.device)
    return model.aggregation(asked, everyone, image=image, image_vector=image.mean(1)).attention
