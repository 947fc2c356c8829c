"""Text side of SSM: constant sentence vectors whose cosines measure equal meaning."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mg3d.models.pooling import sentence_means, sentence_membership
from mg3d.models.text.encoder import TextEncoder
from mg3d.precision import without_autocast

_REPORTS_AT_ONCE = 128
_SMALLEST_WEIGHT = 1e-3


class CentredSentenceSpace(nn.Module):
    """IDF-weighted mean of constant word vectors, minus the mean over the training sentences.

    Before `fit` all weights are 1 and the mean is 0. Plain means have cosines above 0.9 for nearly all pairs of sentences.
    """

    def __init__(self, text: TextEncoder) -> None:
        super().__init__()
        self.register_buffer("word_vectors", text.word_vectors.clone())
        self.register_buffer("word_weight", torch.ones(text.vocabulary_size))
        self.register_buffer("mean", torch.zeros(text.width))

    @torch.no_grad()
    def forward(self, ids: Tensor, sentence_index: Tensor, sentences: int) -> Tensor:
        """[B, S, text width], S = `sentences`, for ids and sentence_index int64 [B, T]; zero for a sentence without tokens."""
        weights = self.word_weight[ids]
        with without_autocast(ids.device.type):  # the centred means are small differences
            means = sentence_means(self.word_vectors[ids], sentence_index, sentences, weights=weights)
        real = sentence_membership(sentence_index, sentences).any(1)
        return (means - self.mean) * real[..., None]

    @torch.no_grad()
    def fit(self, text: TextEncoder, ids: Tensor, sentence_index: Tensor) -> None:
        """Copies the text encoder's word vectors and fits weights and mean to training reports, int64 [R, T] each."""
        sentences = max(int(sentence_index.max()) + 1, 1)
        keys = (torch.arange(len(ids), device=ids.device)[:, None] * sentences + sentence_index)[sentence_index >= 0]
        words = ids[sentence_index >= 0]
        if len(words) == 0:
            raise ValueError("no training report has a sentence; word weights of SSM cannot be computed")
        vocabulary = len(self.word_weight)
        distinct = torch.unique(keys * vocabulary + words)
        sentences_with_word = torch.bincount(distinct % vocabulary, minlength=vocabulary).to(self.word_weight)
        rarity = torch.log((1 + len(torch.unique(keys))) / (1 + sentences_with_word))
        self.word_vectors.copy_(text.word_vectors)
        self.word_weight.copy_(rarity.clamp(min=_SMALLEST_WEIGHT))
        self.mean.zero_()
        total = torch.zeros_like(self.mean)
        for some_ids, some_index in zip(ids.split(_REPORTS_AT_ONCE), sentence_index.split(_REPORTS_AT_ONCE)):
            total += self(some_ids, some_index, sentences).sum((0, 1))
        self.mean.copy_(total / len(torch.unique(keys)))


def random_pair_cosines(vectors: Tensor, sentence_mask: Tensor, *, pairs: int, generator: torch.Generator) -> Tensor:
    """Cosines [<= pairs] of random pairs of sentences of different reports; vectors [R, S, d], sentence_mask bool [R, S].

    generator on the CPU. Pairs within one report are dropped, so fewer than `pairs` cosines may be returned.
    """
    report = torch.arange(len(vectors), device=vectors.device)[:, None].expand_as(sentence_mask)[sentence_mask]
    flat = F.normalize(vectors[sentence_mask], dim=-1)
    if len(flat) == 0:
        return flat.new_zeros(0)
    drawn = torch.randint(len(flat), (2, pairs), generator=generator).to(flat.device)
    apart = report[drawn[0]] != report[drawn[1]]
    return (flat[drawn[0]] * flat[drawn[1]]).sum(-1)[apart]
