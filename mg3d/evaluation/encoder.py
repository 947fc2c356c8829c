"""Encoders as evaluation sees them: volumes and texts in, unit-length embeddings of one space out."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mg3d.datasets.studies import ReportText
from mg3d.datasets.tokenizer import encode_report, pad_reports
from mg3d.models.grounding import Texts, attention_maps, occlusion_maps
from mg3d.models.mg3d import MG3D
from mg3d.precision import inference


class Encoder(Protocol):
    """Any model that embeds volumes and texts into one space; embeddings are [n, E] of unit length, on the CPU."""

    logit_scale: float
    """Factor of the cosine in the zero-shot softmax (1 / temperature)."""

    def embed_volumes(self, volumes: Tensor) -> Tensor:
        """Embeddings of volumes float32 [B, 1, D, H, W] in [0, 1]."""

    def embed_texts(self, texts: Sequence[ReportText]) -> Tensor:
        """Embeddings of reports, or of prompts as reports of one sentence (`as_sentence`)."""


class GroundingEncoder(Encoder, Protocol):
    """An encoder that can also localise a text."""

    def ground(self, volumes: Tensor, prompts: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        """Maps [B, P, d, h, w] >= 0 by method: evidence for the first text of each prompt pair rather than the second."""


def as_sentence(text: str) -> ReportText:
    """A text as a report of one sentence."""
    return ReportText(text, ((0, len(text)),))


class MG3DEncoder:
    """`GroundingEncoder` of an MG3D model with separate image and report embeddings.

    Args:
        tokenizer: the tokenizer the model was trained with.
        max_text_len: maximum number of tokens per text.
        batch_size: texts per forward pass.
        precision: see `mg3d.precision.autocast`.

    Raises:
        ValueError: the model contrasts fused vectors or was trained without contrast, so it has no such embeddings.
    """

    def __init__(
        self,
        model: MG3D,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_text_len: int,
        batch_size: int = 16,
        precision: str = "32-true",
    ) -> None:
        self.model, self.tokenizer, self.max_text_len, self.batch_size = model.eval(), tokenizer, max_text_len, batch_size
        self.device, self.precision = next(model.parameters()).device, precision
        with torch.no_grad():
            self.logit_scale = float(model.logit_scale)

    def embed_volumes(self, volumes: Tensor) -> Tensor:
        """See `Encoder`."""
        with inference(self.precision, self.device):
            return self.model.embed_volume(volumes.to(self.device)).float().cpu()

    def embed_texts(self, texts: Sequence[ReportText]) -> Tensor:
        """See `Encoder`."""
        batches = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        with inference(self.precision, self.device):
            return torch.cat([self._embed(batch).float().cpu() for batch in batches])

    def _embed(self, texts: Sequence[ReportText]) -> Tensor:
        return self.model.embed_report(*self.tokenize(texts), max_sentences=max(len(text.sentence_spans) for text in texts))

    def ground(self, volumes: Tensor, prompts: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        """`contrast`: tokens that raise the cosine with the first text over the second; `attention`: of DCL and SSM, if any.

        Each map sums to 1.
        """
        present, absent = (self.tokenize([as_sentence(pair[side]) for pair in prompts]) for side in (0, 1))
        with inference(self.precision, self.device):
            image = self.model.encode_volume(volumes.to(self.device))
            directions = self.model.embed_report(*present, max_sentences=1) - self.model.embed_report(*absent, max_sentences=1)
            maps = {
                "contrast": occlusion_maps(self.model, image, directions),
                "attention": attention_maps(self.model, image, present),
            }
        return {name: part.unflatten(2, self.model.grid).float().cpu() for name, part in maps.items() if part is not None}

    def sentence_vectors(self, reports: Sequence[ReportText]) -> list[tuple[ReportText, Tensor]]:
        """Each report with its sentences that fit into `max_text_len`, and their SSM vectors [S, d]."""
        vectors_by_report = []
        for report in reports:
            spans = tuple(encode_report(self.tokenizer, *report, self.max_text_len).sentence_spans)
            with inference(self.precision, self.device):
                vectors = self.model.sentence_vectors(*self.tokenize([report]), max(len(spans), 1))
            vectors_by_report.append((report._replace(sentence_spans=spans), vectors[0, : len(spans)].float().cpu()))
        return vectors_by_report

    def tokenize(self, texts: Sequence[ReportText]) -> Texts:
        """Token ids, attention mask and sentence index of texts, on the model's device."""
        return tuple(part.to(self.device) for part in pad_reports(self.tokenizer, texts, self.max_text_len))


def embed_batches(encoder: Encoder, batches: Iterable[Tensor]) -> Tensor:
    """Embeddings [n, E] of batches that are not yet clipped to [0, 1]."""
    return torch.cat([encoder.embed_volumes(batch.clamp(0.0, 1.0)) for batch in batches])
