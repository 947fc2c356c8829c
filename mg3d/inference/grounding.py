"""Which image tokens a sentence is about."""

import torch
from torch import Tensor

from mg3d.models.aggregation import ImageAggregation
from mg3d.models.mg3d import MG3D
from mg3d.models.pooling import sentence_means

Text = tuple[Tensor, Tensor, Tensor]
"""ids int64 [1, T], attention mask bool [1, T], sentence index int64 [1, T]."""


def sentence_cells(model: MG3D, image: Tensor, text: Text) -> tuple[Tensor, float]:
    """Share [N] of each image token [1, N, d] in what one sentence finds there, times N; and the cosine of scan and sentence.

    A model trained with DCL or SSM has an attention from sentences to image tokens, and that is read. One with CML alone tells by
    how much each token moves the cosine to first order, away from the mean token; tokens that lower it count as 0.
    """
    report = model.embed_report(*text)
    similarity = float((model.contrast.embed_image(image) * report).sum())
    if isinstance(model.aggregation, ImageAggregation):
        sentences = sentence_means(model.encode_report(*text[:2]), text[2], 1)
        mask = torch.ones(1, 1, dtype=torch.bool, device=image.device)
        shares = model.aggregation(sentences, mask, image=image, image_vector=image.mean(1)).attention[0, 0]
    else:
        shares = moved_cosine(model, image, report)
    return shares * len(shares), similarity


def moved_cosine(model: MG3D, image: Tensor, report: Tensor) -> Tensor:
    """Share [N] of each image token [1, N, d] in how far it raises the cosine with a report [1, E], to first order."""
    with torch.enable_grad():
        tokens = image.detach().requires_grad_()
        cosine = (model.contrast.embed_image(tokens) * report).sum()
        (slope,) = torch.autograd.grad(cosine, tokens)
    gain = ((image - image.mean(1, keepdim=True)) * slope).sum(-1)[0].clamp(min=0)
    return gain / gain.sum() if gain.sum() > 0 else torch.full_like(gain, 1 / len(gain))
