"""DCL and SSM: the visual side of every sentence, gathered from the image."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from mg3d.losses.dcl import DCLLoss
from mg3d.losses.ssm import SSMLoss
from mg3d.models.branches.base import Branch
from mg3d.models.heads import LogitScale, ProjectionHead
from mg3d.models.mg3d import MG3D
from mg3d.models.pooling import AttentionPool, build_image_pool
from mg3d.models.sentence_space import CentredSentenceSpace
from mg3d.models.text.encoder import TextEncoder
from mg3d.models.tokens import SharedTokens
from mg3d.settings.schema import ModelSettings

SENTENCE_WIDTH = 128
"""Width in which the visual sides of sentences are compared (paper: 128)."""


class Aggregate(NamedTuple):
    """Output of an aggregation."""

    sentence_features: Tensor
    """[B, S, SENTENCE_WIDTH]: visual side of every sentence, not normalised."""
    patient: Tensor
    """[B, d]: of all sentences of a patient."""


class ImageAggregation(nn.Module):
    """Single-head attention from sentences to image tokens; the values come from the image."""

    def __init__(self, width: int, *, heads: int, queries: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.sentence_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, SENTENCE_WIDTH))
        self.pool = AttentionPool(width, heads, queries=queries, may_be_empty=True)

    def attention(self, sentences: Tensor, image: Tensor) -> Tensor:
        """Attention weights [B, S, N] of sentences [B, S, d] over image tokens [B, N, d]; sum to 1 over N."""
        logits = self.query(sentences) @ self.key(image).transpose(1, 2) / math.sqrt(sentences.shape[-1])
        return logits.softmax(-1)

    def forward(self, sentences: Tensor, sentence_mask: Tensor, image: Tensor) -> Aggregate:
        """Of sentences [B, S, d], their mask bool [B, S] and image tokens [B, N, d]."""
        gathered = self.attention(sentences, image) @ self.value(image)
        return Aggregate(self.sentence_head(gathered), self.pool(gathered, sentence_mask))


class DisentangledBranch(Branch):
    """Sentence-wise aggregation of the image, contrasted with the volume (DCL) and between patients (SSM)."""

    name = "disentangled"

    def __init__(self, model: MG3D, settings: ModelSettings, objectives: Iterable[str]) -> None:
        super().__init__(model, settings, objectives)
        width = settings.hidden_size
        self.aggregation = ImageAggregation(width, heads=settings.fusion_heads, queries=settings.pool_queries)
        if "dcl" in self.objectives:
            self.image_pool = build_image_pool(settings, model.grid)
            self.image_head = ProjectionHead(width, settings.embedding_size)
            self.aggregate_head = ProjectionHead(width, settings.embedding_size)
            self.logit_scale = LogitScale(settings.contrast)
            self.objective_losses["dcl"] = DCLLoss()
        if "ssm" in self.objectives:
            self.sentence_space = CentredSentenceSpace(model.text)
            self.objective_losses["ssm"] = SSMLoss(
                same_above=settings.ssm_same_above, differ_below=settings.ssm_differ_below
            )

    def features(self, tokens: SharedTokens) -> dict[str, Tensor]:
        """Embeddings of DCL, and both sides of every sentence for SSM."""
        batch, features = tokens.batch, {}
        aggregate = self.aggregation(tokens.sentences, batch.sentence_mask, tokens.image)
        if "dcl" in self.objectives:
            features |= {
                "dcl_image_embedding": self.image_head(self.image_pool(tokens.image)),
                "dcl_aggregate_embedding": self.aggregate_head(aggregate.patient),
                **self.logit_scale.features("dcl"),
            }
        if "ssm" in self.objectives:
            features["ssm_visual"] = aggregate.sentence_features
            features["ssm_text"] = self.sentence_space(
                batch.report_ids, batch.sentence_index, batch.sentence_mask.shape[1]
            )
        return features

    def sentence_vectors(self, text: TextEncoder, report: tuple[Tensor, Tensor, Tensor], sentences: int) -> Tensor:
        """Text side of SSM [B, S, text width], S = `sentences`; report: ids, attention mask and sentence index, [B, T] each."""
        ids, _, sentence_index = report
        return self.sentence_space(ids, sentence_index, sentences)

    def fit_sentence_space(self, text: TextEncoder, ids: Tensor, sentence_index: Tensor) -> None:
        """Fits the text side of SSM to training reports, int64 [R, T] each; nothing without SSM."""
        if "ssm" in self.objectives:
            self.sentence_space.fit(text, ids, sentence_index)
