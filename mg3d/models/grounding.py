"""Which image tokens a text refers to: by occlusion of the joint embedding, or by the attention of the aggregation."""

import torch
from torch import Tensor

from mg3d.models.branches.disentangled import ImageAggregation
from mg3d.models.mg3d import MG3D
from mg3d.models.pooling import sentence_means
from mg3d.precision import without_autocast

Texts = tuple[Tensor, Tensor, Tensor]
"""ids int64 [S, T], attention mask bool [S, T], sentence index int64 [S, T]: S texts of one sentence each."""


def occlusion_maps(model: MG3D, image: Tensor, directions: Tensor) -> Tensor:
    """Relative importance [B, S, N] of image tokens [B, N, d] for directions [S, E] of the joint embedding; sums to 1 over N.

    The importance of a token is the drop of the product of embedding and direction when the token is replaced by the mean of its
    scan's tokens; negative drops count as 0. Uniform if no token has a positive drop.
    """
    dtype, embed, drops = model.project_image.weight.dtype, model.contrast.embed_image, []
    image, directions = image.to(dtype), directions.to(dtype)
    mean = image.mean(1)
    with without_autocast(image.device.type):  # a drop is a small difference of cosines
        full = embed(image) @ directions.T
        for index in range(image.shape[1]):
            occluded = image.clone()
            occluded[:, index] = mean
            drops.append(full - embed(occluded) @ directions.T)
    importance = torch.stack(drops, -1).clamp(min=0)
    total = importance.sum(-1, keepdim=True)
    return torch.where(total > 0, importance / total.clamp(min=torch.finfo(total.dtype).tiny), 1 / image.shape[1])


def attention_maps(model: MG3D, image: Tensor, texts: Texts) -> Tensor | None:
    """Attention [B, S, N] of each text over image tokens [B, N, d]; None for models without image aggregation.

    Those are models trained without DCL and SSM, or with the released wiring.
    """
    branch = dict(model.branches.items()).get("disentangled")
    if not isinstance(getattr(branch, "aggregation", None), ImageAggregation):
        return None
    ids, mask, index = texts
    sentences = sentence_means(model.encode_report(ids, mask), index, 1)[:, 0]
    return branch.aggregation.attention(sentences.expand(len(image), -1, -1), image)
