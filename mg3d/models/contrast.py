"""The vectors of a patient that are contrasted with those of other patients (CML), and the image vector that DCL contrasts."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mg3d.models.heads import ProjectionHead
from mg3d.models.pooling import AttentionPool, CollapsePool, SentenceAttentionPool
from mg3d.types import Batch


class ImageReportContrast(nn.Module):
    """Image against report, neither having seen the other.

    Args:
        image_pool: tokens [B, N, width] -> [B, width].
    """

    def __init__(self, width: int, embedding_width: int, *, image_pool: nn.Module, heads: int, queries: int) -> None:
        super().__init__()
        self.image_pool = image_pool
        self.report_pool = AttentionPool(width, heads, queries=queries, may_be_empty=True)
        self.image_head = ProjectionHead(width, embedding_width)
        self.report_head = ProjectionHead(width, embedding_width)

    def embed_image(self, image: Tensor) -> Tensor:
        """[B, E] of length 1 for image tokens [B, N, d]."""
        return self.image_head(self.image_pool(image))

    def embed_report(self, sentences: Tensor, sentence_mask: Tensor) -> Tensor:
        """[B, E] of length 1 for sentences [B, S, d]; sentence_mask bool [B, S]."""
        return self.report_head(self.report_pool(sentences, sentence_mask))


def embed_further_reports(
    batch: Batch, project: Callable[[Tensor], Tensor], contrast: ImageReportContrast
) -> Mapping[str, Tensor]:
    """The `negative_*` fields of `Features`; {} where the batch has none.

    The batch holds sentence means of the text encoder's features: the projection of a mean is the mean of projections.
    """
    if not len(batch.negative_sentences):
        return {}
    sentences = project(batch.negative_sentences.to(next(contrast.parameters()).dtype))
    embedded = contrast.embed_report(sentences.flatten(0, 1), batch.negative_sentence_mask.flatten(0, 1))
    return {
        "negative_embedding": embedded.unflatten(0, batch.negative_patient_key.shape),
        "negative_patient_key": batch.negative_patient_key,
        "negative_report_key": batch.negative_report_key,
    }


class FusedVectors(NamedTuple):
    """What `FusedContrast` gives."""

    first_embedding: Tensor
    """[B, E], multi-modal."""
    second_embedding: Tensor
    """[B, E], uni-modal."""
    fused_image: Tensor
    """[B, d]."""
    image: Tensor
    """[B, d], not fused."""


class FusedContrast(nn.Module):
    """The released contrast: (report, image) after fusion against (report, image) of the same patient before it.

    Both sides hold both modalities, so the text halves alone can solve it; it gives no plain image or report embedding.
    """

    def __init__(self, width: int, embedding_width: int, image_tokens: int) -> None:
        super().__init__()
        self.unimodal_image_pool = CollapsePool(width, image_tokens)
        self.multimodal_image_pool = CollapsePool(width, image_tokens)
        self.unimodal_report_pool = SentenceAttentionPool(width)
        self.multimodal_report_pool = SentenceAttentionPool(width)
        self.multimodal_head = ProjectionHead(2 * width, embedding_width)
        self.unimodal_head = ProjectionHead(2 * width, embedding_width)

    def forward(self, plain: tuple[Tensor, Tensor], fused: tuple[Tensor, Tensor], sentence_mask: Tensor) -> FusedVectors:
        """The vectors from (image tokens [B, N, d], sentences [B, S, d]) before and after fusion; sentence_mask bool [B, S]."""
        image, fused_image = self.unimodal_image_pool(plain[0]), self.multimodal_image_pool(fused[0])
        report = self.unimodal_report_pool(plain[1], sentence_mask)
        fused_report = self.multimodal_report_pool(fused[1], sentence_mask)
        return FusedVectors(
            first_embedding=self.multimodal_head(torch.cat([fused_report, fused_image], -1)),
            second_embedding=self.unimodal_head(torch.cat([report, image], -1)),
            fused_image=fused_image,
            image=image,
        )
