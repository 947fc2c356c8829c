"""Disentangled aggregation: the visual side of every sentence, and of all sentences of a patient together."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mg3d.models.pooling import AttentionPool, MeanPool, SentencePool


class Aggregate(NamedTuple):
    """What an aggregation gives."""

    sentence_features: Tensor
    """[B, S, sentence_width]; not normalised."""
    patient: Tensor
    """[B, d]."""
    attention: Tensor | None
    """[B, S, N]: where in the image each sentence looked, sums to 1 over N; None where sentences do not look."""


class ImageAggregation(nn.Module):
    """Sentences ask the image: softmax attention whose values come from the image tokens."""

    def __init__(self, width: int, sentence_width: int, *, heads: int, queries: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.sentence_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, sentence_width))
        self.pool = AttentionPool(width, heads, queries=queries, may_be_empty=True)

    def forward(self, sentences: Tensor, sentence_mask: Tensor, *, image: Tensor, image_vector: Tensor) -> Aggregate:
        """From sentences [B, S, d], their mask bool [B, S] and image tokens [B, N, d]; `image_vector` is not read."""
        asked = self.query(sentences) @ self.key(image).transpose(1, 2) / math.sqrt(sentences.shape[-1])
        attention = asked.softmax(-1)
        gathered = attention @ self.value(image)
        return Aggregate(self.sentence_head(gathered), self.pool(gathered, sentence_mask), attention)


class SentenceGateLayer(nn.Module):
    """Each sentence's own value times how far its key agrees with the image vector (released `agg_img_cross_attention`)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key1 = nn.Linear(width, width)
        self.value1 = nn.Linear(width, width)
        self.query2 = nn.Linear(width, width)

    def forward(self, sentences: Tensor, image_vector: Tensor) -> Tensor:
        """[B, S, d] for sentences [B, S, d] and one vector [B, d] of each image."""
        agreement = self.key1(sentences) @ self.query2(image_vector)[..., None] / math.sqrt(sentences.shape[-1])
        return torch.sigmoid(agreement) * self.value1(sentences)


class SentenceAggregation(nn.Module):
    """The released aggregation: the image is only a number that gates the sentence's value, so the visual side is text."""

    def __init__(self, width: int, sentence_width: int, *, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SentenceGateLayer(width) for _ in range(layers))
        self.pool = MeanPool(width)
        self.sentence_head = SentencePool(width, sentence_width)

    def forward(self, sentences: Tensor, sentence_mask: Tensor, *, image: Tensor, image_vector: Tensor) -> Aggregate:
        """From sentences [B, S, d], their mask bool [B, S] and a vector [B, d] of each image; `image` is not read."""
        for layer in self.layers:
            sentences = layer(sentences, image_vector)
            image_vector = self.pool(sentences, sentence_mask)
        return Aggregate(self.sentence_head(sentences), image_vector, None)
